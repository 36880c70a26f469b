//! Kernels by themselves, for benches: products, attention, norms and rotation at any shape, over random values, as the
//! slices call them; and what this CPU could do at most, for comparison.
//!
//! Every call runs on the threads and the [`Kernel`] of the device it is given. What was made for one device may be
//! given to another one of the same kernel and compute type.

mod peak;

use std::io;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

pub use peak::peak_flops;

use super::attention::{Heads, Segment, Sequence, attention};
use super::band::Band;
use super::gemm::{Packed, Rounding, Rows};
use super::linear::{GatedLinear, Linear};
use super::rope::Rotation;
use super::scratch::Values;
use super::{HostDevice, Kernel, norm};
use crate::tensor_file::{StoredTensor, TensorFile};

/// Rows that enter a product, `[rows, width]`, rounded as the device does.
pub struct Activations(Rows);

impl Activations {
    /// Values in [-1, 1).
    pub fn random(device: &HostDevice, rows: usize, width: usize) -> Self {
        Self(device.rows_of(&values(rows * width), width))
    }
}

/// What a product gives, `[rows, columns]`, on memory that the device uses again.
pub struct Product(#[expect(dead_code, reason = "benches only time it")] Values);

/// The weight of a linear layer, `inner × columns`, packed as loading does.
pub struct Matrix(Linear);

impl Matrix {
    /// Random weights, bf16 as checkpoints have them. As many copies as take at least `bytes` of memory: one after the
    /// other they come from memory, when no cache holds that much.
    ///
    /// # Errors
    /// When the temporary file that they are packed from cannot be written.
    pub fn random(device: &HostDevice, inner: usize, columns: usize, bytes: usize) -> io::Result<Vec<Self>> {
        let weight = weights(columns, inner)?;
        let pack = || Packed::side_by_side(device, &[&weight], 0..inner, device.dtype());
        let copies = 0..copies(bytes, &[&weight]);
        Ok(copies.map(|_| Self(Linear { weight: pack(), bias: None })).collect())
    }

    /// The same with a bias.
    #[must_use]
    pub fn with_bias(self) -> Self {
        let bias = Some(values(self.0.outputs()));
        Self(Linear { bias, ..self.0 })
    }

    /// The product with some rows, `[rows, columns]`.
    ///
    /// # Panics
    /// As everywhere here, when shapes do not fit.
    pub fn multiply(&self, device: &HostDevice, x: &Activations) -> Product {
        Product(self.0.apply(device, &x.0))
    }

    /// `gelu` of the product, `[rows, columns]`, as rows for another one.
    pub fn multiply_gelu(&self, device: &HostDevice, x: &Activations) -> Activations {
        Activations(self.0.apply_gelu(device, &x.0))
    }

    /// Adds the product to a residual stream `[rows, columns]`.
    pub fn add_product(&self, device: &HostDevice, x: &Activations, hidden: &mut [f32]) {
        self.0.add_to(device, &x.0, hidden, None);
    }
}

/// The two weights of the first half of a gated MLP, each `inner × columns`.
pub struct GatedMatrix(GatedLinear);

impl GatedMatrix {
    /// As [`Matrix::random`].
    ///
    /// # Errors
    /// Likewise.
    pub fn random(device: &HostDevice, inner: usize, columns: usize, bytes: usize) -> io::Result<Vec<Self>> {
        let [gate, up] = [weights(columns, inner)?, weights(columns, inner)?];
        let copies = 0..copies(bytes, &[&gate, &up]);
        Ok(copies.map(|_| Self(GatedLinear::pack(device, &gate, &up))).collect())
    }

    /// `gelu(x · gate) · (x · up)`, `[rows, columns]`, as rows for another product.
    pub fn multiply(&self, device: &HostDevice, x: &Activations) -> Activations {
        Activations(self.0.apply(device, &x.0))
    }
}

/// Queries, and keys and values in segments; the same for each of some sequences.
pub struct Attention {
    heads: Heads,
    sequences: usize,
    /// `[sequences × queries, heads × width]`.
    queries: Vec<f32>,
    /// Keys and values `[tokens, key heads × width]` of each segment.
    segments: Vec<[Vec<f32>; 2]>,
}

/// How many heads there are, and how wide.
#[derive(Debug, Clone, Copy)]
pub struct HeadSizes {
    /// Query heads.
    pub query: usize,
    /// Key and value heads.
    pub key_value: usize,
    /// Values of a head.
    pub width: usize,
}

impl Attention {
    /// `queries` tokens in each sequence; segments of these many keys.
    pub fn random(sizes: HeadSizes, sequences: usize, queries: usize, segments: &[usize]) -> Self {
        let HeadSizes { query, key_value, width } = sizes;
        Self {
            heads: Heads { query, key_value, width },
            sequences,
            queries: values(sequences * queries * query * width),
            segments: segments
                .iter()
                .map(|keys| [(); 2].map(|()| values(keys * key_value * width)))
                .collect(),
        }
    }

    /// The weighted values, `[sequences × queries, heads × width]`.
    pub fn attend(&self, device: &HostDevice) -> Activations {
        let Heads { query, key_value, width } = self.heads;
        let queries = self.queries.len() / (self.sequences * query * width);
        let segments = || {
            let parts = self.segments.iter();
            parts.map(|[keys, values]| Segment::whole(keys, values, key_value * width)).collect()
        };
        let sequences: Vec<Sequence<'_>> = (0..self.sequences)
            .map(|i| Sequence { tokens: i * queries..(i + 1) * queries, segments: segments() })
            .collect();
        Activations(attention(device, Band::whole(&self.queries, query * width), &sequences, self.heads))
    }

    /// Multiplications and additions of both products, in all. The softmax between them is not counted.
    pub fn flops(&self) -> f64 {
        let keys: usize = self.segments.iter().map(|[keys, _]| keys.len()).sum();
        4.0 * self.queries.len() as f64 * (keys / (self.heads.key_value * self.heads.width)) as f64
    }
}

/// A layer norm over rows of some width.
pub struct LayerNorm(norm::LayerNorm);

impl LayerNorm {
    /// With random weight and bias.
    pub fn random(width: usize) -> Self {
        Self(norm::LayerNorm { weight: values(width), bias: values(width) })
    }

    /// Rows `[rows, width]` for a product.
    pub fn normalise(&self, device: &HostDevice, x: &[f32]) -> Activations {
        Activations(self.0.apply(device, x))
    }
}

/// Gemma's RMS norm over rows of some width.
pub struct RmsNorm {
    scale: Vec<f32>,
}

impl RmsNorm {
    /// With random weight.
    pub fn random(width: usize) -> Self {
        Self { scale: values(width) }
    }

    /// Rows `[rows, width]` for a product.
    pub fn normalise(&self, device: &HostDevice, x: &[f32]) -> Activations {
        Activations(norm::RmsNorm::Plain(&self.scale).apply(device, x, self.scale.len()))
    }
}

/// The rotary embedding of rows at the positions 0, 1, 2, …
pub struct Rotary(Rotation);

impl Rotary {
    /// For that many rows.
    pub fn new(rows: usize, head_width: usize) -> Self {
        Self(Rotation::new(0..rows, head_width))
    }

    /// Rotates heads `[rows, heads × width]` in place.
    pub fn rotate(&self, device: &HostDevice, x: &mut [f32]) {
        self.0.apply(device, x);
    }
}

/// Runs `work` on a thread of the device, as slices do: nothing is handed over from outside the pool.
pub fn within<R: Send>(device: &HostDevice, work: impl FnOnce() -> R + Send) -> R {
    device.run(work)
}

/// Bytes that a value takes in rows that enter a product.
pub fn bytes_of_activation(device: &HostDevice) -> usize {
    match device.rounding() {
        Rounding::F32 | Rounding::Bf16AsF32 => 4,
        Rounding::Bf16Pairs => 2,
    }
}

/// Copies values on all threads of the device: the least that a kernel does which writes as much as it reads, unless it
/// works in place.
pub fn copy(device: &HostDevice, from: &[f32], to: &mut [f32]) {
    /// Values that a task copies: 64 KB.
    const TASK: usize = 1 << 14;
    device.run(|| {
        to.par_chunks_mut(TASK).zip(from.par_chunks(TASK)).for_each(|(to, from)| to.copy_from_slice(from));
    });
}

/// That many values in [-1, 1), always the same.
pub fn values(count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// How many copies of these weights take that many bytes, at least one.
fn copies(bytes: usize, weights: &[&StoredTensor]) -> usize {
    let one: usize = weights.iter().map(|weight| weight.bytes().len()).sum();
    bytes.div_ceil(one.max(1)).max(1)
}

/// A matrix `[rows, width]` of bf16 between 0.5 and 1 of either sign, in a file as those of checkpoints are.
fn weights(rows: usize, width: usize) -> io::Result<StoredTensor> {
    let mut bytes = vec![0; 2 * rows * width];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut bytes);
    // Keep sign and fraction, and set the exponent.
    bytes.as_chunks_mut().0.iter_mut().for_each(|[low, high]| {
        (*low, *high) = (*low & 0x7f, *high & 0x80 | 0x3f);
    });
    stored([rows, width], &bytes)
}

/// A matrix of bf16, given by its little-endian bytes.
pub(super) fn stored(shape: [usize; 2], bytes: &[u8]) -> io::Result<StoredTensor> {
    let file = tempfile::NamedTempFile::new()?;
    let view = TensorView::new(Dtype::BF16, shape.into(), bytes).map_err(io::Error::other)?;
    serialize_to_file([("weight", view)], None, file.path()).map_err(io::Error::other)?;
    // The mapping outlives the file's name.
    let tensors = TensorFile::open(file.path()).map_err(io::Error::other)?;
    Ok(tensors.tensors()["weight"].clone())
}
