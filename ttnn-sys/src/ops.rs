//! The operations. Each is given to the chips and returns before they have computed it; a wrong argument is an
//! [`Error::Operation`] with TT-NN's own message.
//!
//! Shapes follow TT-NN: activations are `[1, 1, rows, columns]` or `[batch, heads, rows, head size]`, weights
//! `[1, 1, inputs, outputs]`, all in [`Layout::Tile`] unless a function says otherwise. A result lies in the memory that
//! its first argument lies in, unless a function takes a [`Memory`].
//!
//! # Errors
//! Every function fails where TT-NN refuses (see [`Error::Operation`]), the tensors lie on different meshes, or
//! their mesh is divided.
#![allow(clippy::missing_errors_doc)]

use crate::{
    Activation, Compute, DataType, Error, Layout, MatmulProgram, Memory, Mesh, Result, Tensor, bridge::ffi,
    tensor, types::check_sizes,
};

/// How [`linear`] computes and what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearOptions {
    /// Applied to the output.
    pub activation: Activation,
    /// Type of the output.
    pub dtype: DataType,
    /// Where the output goes.
    pub memory: Memory,
    /// How it is computed.
    pub compute: Compute,
    /// How it is spread over cores.
    pub program: MatmulProgram,
}

impl Default for LinearOptions {
    /// bf16 in DRAM, as exact as that allows, spread as TT-NN sees fit.
    fn default() -> Self {
        Self {
            activation: Activation::None,
            dtype: DataType::Bf16,
            memory: Memory::Dram,
            compute: Compute::default(),
            program: MatmulProgram::Auto,
        }
    }
}

/// How [`attention`] computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// What scores are multiplied with, before the mask is added.
    pub scale: f32,
    /// Queries that a core takes at a time; a multiple of 32.
    pub q_chunk: u32,
    /// Keys that are taken at a time; a multiple of 32.
    pub k_chunk: u32,
    /// How it is computed.
    pub compute: Compute,
}

/// What [`split_heads`] gives.
#[derive(Debug)]
pub struct Heads {
    /// Queries, `[batch, heads, rows, head size]`.
    pub q: Tensor,
    /// Keys, `[batch, kv heads, rows, head size]`.
    pub k: Tensor,
    /// Values, `[batch, kv heads, rows, head size]`.
    pub v: Tensor,
}

/// `activation(x · weight + bias)`. The bias is `[1, 1, 1, outputs]`; TT-NN's tiles pad it to 32 rows.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: &LinearOptions) -> Result<Tensor> {
    const NAME: &str = "linear";
    let LinearOptions { activation, dtype, memory, compute, program } = *options;
    let (memory, program) = (memory.checked(NAME)?, program.checked(NAME)?);
    mesh_of(NAME, [x, weight].into_iter().chain(bias))?.make(NAME, |_| {
        ffi::linear(
            x.raw(),
            weight.raw(),
            &listed(bias),
            activation.into(),
            dtype.into(),
            &memory,
            &compute.into(),
            &program,
        )
    })
}

/// Each row minus its mean, over its standard deviation, times `weight` plus `bias`, both `[1, 1, 1, columns]`.
pub fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
    compute: Compute,
) -> Result<Tensor> {
    const NAME: &str = "layer_norm";
    mesh_of(NAME, [x, weight, bias])?
        .make(NAME, |_| ffi::layer_norm(x.raw(), weight.raw(), bias.raw(), epsilon, &compute.into()))
}

/// Each row over its root mean square, times `weight` if there is one, `[1, 1, 1, columns]`.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, epsilon: f32, compute: Compute) -> Result<Tensor> {
    const NAME: &str = "rms_norm";
    mesh_of(NAME, [x].into_iter().chain(weight))?
        .make(NAME, |_| ffi::rms_norm(x.raw(), &listed(weight), epsilon, &compute.into()))
}

/// `activation(a + b)`; dimensions of size 1 are broadcast.
pub fn add(a: &Tensor, b: &Tensor, activation: Activation) -> Result<Tensor> {
    const NAME: &str = "add";
    mesh_of(NAME, [a, b])?.make(NAME, |_| ffi::add(a.raw(), b.raw(), activation.into()))
}

/// `activation(a) · b`, element by element; dimensions of size 1 are broadcast.
pub fn multiply(a: &Tensor, b: &Tensor, activation: Activation) -> Result<Tensor> {
    const NAME: &str = "multiply";
    mesh_of(NAME, [a, b])?.make(NAME, |_| ffi::multiply(a.raw(), b.raw(), activation.into()))
}

/// `x + value`.
pub fn add_scalar(x: &Tensor, value: f32) -> Result<Tensor> {
    x.mesh().make("add_scalar", |_| ffi::add_scalar(x.raw(), value))
}

/// `x · value`.
pub fn multiply_scalar(x: &Tensor, value: f32) -> Result<Tensor> {
    x.mesh().make("multiply_scalar", |_| ffi::multiply_scalar(x.raw(), value))
}

/// See [`Activation::Gelu`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.mesh().make("gelu", |_| ffi::gelu(x.raw()))
}

/// See [`Activation::Silu`].
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.mesh().make("silu", |_| ffi::silu(x.raw()))
}

/// Rows of `table` by number: ids are [`DataType::U32`] `[batch, count]`, the table [`DataType::Bf16`], both
/// [`Layout::RowMajor`]; the result is in tiles.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    const NAME: &str = "embedding";
    mesh_of(NAME, [ids, table])?.make(NAME, |_| ffi::embedding(ids.raw(), table.raw()))
}

/// Rotary position embedding of `[1, heads, rows, head size]` by halves: `x·cos + (-x₂, x₁)·sin`, with cos and sin
/// `[1, 1, rows, head size]`. The result has as many rows as its padding; see the tests for what TT-NN asks of shapes.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    const NAME: &str = "rotary";
    mesh_of(NAME, [x, cos, sin])?.make(NAME, |_| ffi::rotary(x.raw(), cos.raw(), sin.raw()))
}

/// Cuts `[batch, 1, rows, (heads + 2 · kv heads) · head size]`, where all queries stand first, then all keys, then
/// all values, into heads. The head size is a multiple of 32: pad each head of the weights where it is not.
pub fn split_heads(x: &Tensor, heads: u32, kv_heads: u32) -> Result<Heads> {
    const NAME: &str = "split_heads";
    check_head_size(NAME, x, heads.saturating_add(kv_heads.saturating_mul(2)))?;
    let mesh = x.mesh();
    let [q, k, v] = mesh.run(NAME, |_| {
        let heads = ffi::split_heads(x.raw(), heads, kv_heads)?;
        Ok([tensor::Parts::of(heads.q())?, tensor::Parts::of(heads.k())?, tensor::Parts::of(heads.v())?])
    })?;
    Ok(Heads { q: Tensor::new(q, mesh), k: Tensor::new(k, mesh), v: Tensor::new(v, mesh) })
}

/// `[batch, heads, rows, head size]` to `[batch, 1, rows, heads · head size]`.
pub fn concat_heads(x: &Tensor) -> Result<Tensor> {
    x.mesh().make("concat_heads", |_| ffi::concat_heads(x.raw()))
}

/// `softmax(scale · q · kᵀ + mask) · v`, not causal. Heads of k and v are shared by as many heads of q. The mask is
/// `[batch, 1, queries, keys]`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    options: &AttentionOptions,
) -> Result<Tensor> {
    const NAME: &str = "attention";
    let AttentionOptions { scale, q_chunk, k_chunk, compute } = *options;
    check_sizes(NAME, "chunks", &[q_chunk, k_chunk])?;
    mesh_of(NAME, [q, k, v].into_iter().chain(mask))?.make(NAME, |_| {
        ffi::attention(q.raw(), k.raw(), v.raw(), &listed(mask), scale, q_chunk, k_chunk, &compute.into())
    })
}

/// Puts tensors one after the other along a dimension; negative ones count from the end.
pub fn concat(parts: &[&Tensor], dim: i32) -> Result<Tensor> {
    const NAME: &str = "concat";
    mesh_of(NAME, parts.iter().copied())?.make(NAME, |_| ffi::concat(&listed(parts.iter().copied()), dim))
}

/// The part from `begin` to before `end`, a number for each dimension.
pub fn slice(x: &Tensor, begin: &[u32], end: &[u32]) -> Result<Tensor> {
    const NAME: &str = "slice";
    check_rank(NAME, x, begin.len())?;
    check_rank(NAME, x, end.len())?;
    x.mesh().make(NAME, |_| ffi::slice(x.raw(), begin, end))
}

/// The same values in row-major order, in another shape. May share the memory of `x`.
pub fn reshape(x: &Tensor, shape: &[u32]) -> Result<Tensor> {
    const NAME: &str = "reshape";
    check_sizes(NAME, "a shape", shape)?;
    x.mesh().make(NAME, |_| ffi::reshape(x.raw(), shape))
}

/// Dimension `i` of the result is dimension `dims[i]` of `x`.
pub fn permute(x: &Tensor, dims: &[u32]) -> Result<Tensor> {
    const NAME: &str = "permute";
    check_rank(NAME, x, dims.len())?;
    let mut seen = vec![false; dims.len()];
    for &dim in dims {
        match seen.get_mut(dim as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => {
                let message = format!("{dims:?} does not name each of {} dimensions once", dims.len());
                return Err(Error::Argument { operation: NAME, message });
            }
        }
    }
    x.mesh().make(NAME, |_| ffi::permute(x.raw(), dims))
}

/// Puts `value` before and after, as often as said for each dimension.
pub fn pad(x: &Tensor, padding: &[(u32, u32)], value: f32) -> Result<Tensor> {
    const NAME: &str = "pad";
    check_rank(NAME, x, padding.len())?;
    let padding: Vec<_> = padding.iter().map(|&(before, after)| ffi::Padding { before, after }).collect();
    x.mesh().make(NAME, |_| ffi::pad(x.raw(), &padding, value))
}

/// The same values in another type.
pub fn typecast(x: &Tensor, dtype: DataType) -> Result<Tensor> {
    x.mesh().make("typecast", |_| ffi::typecast(x.raw(), dtype.into()))
}

/// The same values in another layout.
pub fn to_layout(x: &Tensor, layout: Layout) -> Result<Tensor> {
    x.mesh().make("to_layout", |_| ffi::to_layout(x.raw(), layout.into()))
}

/// The same values elsewhere.
pub fn to_memory(x: &Tensor, memory: Memory) -> Result<Tensor> {
    const NAME: &str = "to_memory";
    let memory = memory.checked(NAME)?;
    x.mesh().make(NAME, |_| ffi::to_memory(x.raw(), &memory))
}

/// Overwrites `into`, where it lies, with `from`.
pub fn copy(from: &Tensor, into: &Tensor) -> Result<()> {
    const NAME: &str = "copy";
    mesh_of(NAME, [from, into])?.run(NAME, |_| ffi::copy(from.raw(), into.raw()))
}

/// TT-NN takes heads that do not fill tiles, and cuts at tiles instead of heads.
fn check_head_size(operation: &'static str, x: &Tensor, heads: u32) -> Result<()> {
    let width = x.shape().last().copied().unwrap_or(0);
    if heads != 0 && width.is_multiple_of(heads) && (width / heads).is_multiple_of(32) {
        return Ok(());
    }
    let message = format!("{width} columns are not {heads} heads of a multiple of 32 columns");
    Err(Error::Argument { operation, message })
}

/// TT-NN takes fewer numbers than there are dimensions, and counts them from either end.
fn check_rank(operation: &'static str, x: &Tensor, found: usize) -> Result<()> {
    let rank = x.shape().len();
    if found == rank {
        return Ok(());
    }
    Err(Error::Argument {
        operation,
        message: format!("{found} numbers do not fit a tensor of {rank} dimensions"),
    })
}

/// The mesh that all of them lie on.
fn mesh_of<'a>(operation: &'static str, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<&'a Mesh> {
    let mut meshes = tensors.into_iter().map(Tensor::mesh);
    let first = meshes.next().ok_or(Error::NoTensor { operation })?;
    if meshes.all(|mesh| mesh.is(first)) { Ok(first) } else { Err(Error::OtherMesh { operation }) }
}

/// As the bridge takes lists, and none or one.
fn listed<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<ffi::TensorRef<'a>> {
    tensors.into_iter().map(|tensor| ffi::TensorRef { tensor: tensor.raw() }).collect()
}
