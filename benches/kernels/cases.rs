//! The kernels and their shapes: those of π0's base size.

use std::hint::black_box;
use std::sync::{Arc, LazyLock};

use tensact_runtime::device::host::measure::{
    self, Activations, Attention, GatedMatrix, HeadSizes, LayerNorm, Matrix, RmsNorm, Rotary,
};
use tensact_runtime::device::host::{HostDevice, Kernel};

use crate::devices;

/// Weights of a cold case take this much: about what those of the action expert do, and more than caches hold.
const COLD_BYTES: usize = 512 << 20;

/// A kernel at a shape.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) shape: String,
    pub(crate) kernel: Kernel,
    /// Makes the operands for a kernel and compute type; the call takes any device that has them.
    pub(crate) prepare: Box<dyn FnOnce(&HostDevice) -> Prepared>,
}

pub(crate) struct Prepared {
    pub(crate) work: Work,
    pub(crate) call: Box<dyn FnMut(&HostDevice) + Send>,
}

/// What one call does.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Multiplications and additions.
    Flops(f64),
    /// Bytes read and written.
    Bytes(f64),
}

/// Name of the cases that compare kernels.
pub(crate) const EVERY_KERNEL: &str = "every kernel";

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = products();
    cases.extend(attentions());
    cases.extend(element_wise());
    for (rows, inner, columns) in [(816, 2048, 2048), (50, 1024, 512)] {
        let layer = Layer { name: EVERY_KERNEL, inner, columns, bias: false, then: Then::Store };
        let weights = layer.weights(0);
        cases.extend(Kernel::available().into_iter().map(|kernel| layer.case(kernel, rows, "", &weights)));
    }
    cases
}

/// A linear layer of the model.
#[derive(Clone, Copy)]
struct Layer {
    name: &'static str,
    inner: usize,
    columns: usize,
    bias: bool,
    then: Then,
}

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Store,
    Gelu,
    Residual,
    /// Two products, `gelu` of one times the other.
    Gated,
}

/// Computes a layer; the last argument is the residual stream.
type Apply = Box<dyn Fn(&HostDevice, &Activations, &mut [f32]) + Send + Sync>;

/// Copies of a layer's weights, packed when they are needed and shared by its cases.
type Weights = Arc<LazyLock<Vec<Apply>, Box<dyn FnOnce() -> Vec<Apply> + Send>>>;

/// The linear layers, with three cameras and 48 tokens of instruction: 768 rows in the vision tower and 816 in the VLM.
/// The expert's 50 rows are those of one request, its 200 those of four.
fn products() -> Vec<Case> {
    let layer = |name, inner, columns, then| Layer { name, inner, columns, bias: false, then };
    let prefix = [
        layer("prefix q", 2048, 2048, Then::Store),
        layer("prefix k, v", 2048, 512, Then::Store),
        layer("prefix gate, up", 2048, 16384, Then::Gated),
        layer("prefix down", 16384, 2048, Then::Residual),
    ];
    let vision = [
        layer("vision q, k, v", 1152, 3456, Then::Store),
        layer("vision out", 1152, 1152, Then::Residual),
        layer("vision fc1", 1152, 4304, Then::Gelu),
        layer("vision fc2", 4304, 1152, Then::Residual),
    ]
    .map(|layer| Layer { bias: true, ..layer });
    let expert = [
        layer("expert q", 1024, 2048, Then::Store),
        layer("expert k, v", 1024, 512, Then::Store),
        layer("expert gate, up", 1024, 4096, Then::Gated),
        layer("expert down", 4096, 1024, Then::Residual),
        layer("expert o", 2048, 1024, Then::Residual),
    ];
    let fastest = Kernel::fastest();
    let large = prefix.map(|layer| (layer, 816)).into_iter().chain(vision.map(|layer| (layer, 768)));
    let mut cases: Vec<Case> =
        large.map(|(layer, rows)| layer.case(fastest, rows, "", &layer.weights(0))).collect();
    for layer in expert {
        let cold = layer.weights(COLD_BYTES);
        let warm = layer.weights(0);
        for rows in [50, 200] {
            cases.push(layer.case(fastest, rows, "cold", &cold));
            cases.push(layer.case(fastest, rows, "warm", &warm));
        }
    }
    cases
}

impl Layer {
    /// As many copies as take that many bytes, at least one.
    fn weights(self, bytes: usize) -> Weights {
        // Packed weights fit any kernel of one compute type.
        let pack: Box<dyn FnOnce() -> Vec<Apply> + Send> =
            Box::new(move || self.pack(&devices(Kernel::fastest())[0], bytes));
        Arc::new(LazyLock::new(pack))
    }

    fn pack(self, device: &HostDevice, bytes: usize) -> Vec<Apply> {
        const ROOM: &str = "a bench machine has room for weights in its temporary folder";
        let Self { inner, columns, then, .. } = self;
        if then == Then::Gated {
            let matrices = GatedMatrix::random(device, inner, columns, bytes).expect(ROOM);
            let apply = |matrix: GatedMatrix| -> Apply {
                Box::new(move |device, x, _| drop(black_box(matrix.multiply(device, x))))
            };
            return matrices.into_iter().map(apply).collect();
        }
        let apply = |matrix: Matrix| -> Apply {
            let matrix = if self.bias { matrix.with_bias() } else { matrix };
            Box::new(move |device, x, hidden| match then {
                Then::Store => drop(black_box(matrix.multiply(device, x))),
                Then::Gelu => drop(black_box(matrix.multiply_gelu(device, x))),
                Then::Residual => matrix.add_product(device, x, hidden),
                Then::Gated => unreachable!("it was handled above"),
            })
        };
        Matrix::random(device, inner, columns, bytes).expect(ROOM).into_iter().map(apply).collect()
    }

    /// The layer over some rows, with one copy of the weights after the other.
    fn case(self, kernel: Kernel, rows: usize, suffix: &str, weights: &Weights) -> Case {
        let Self { name, inner, columns, then, .. } = self;
        let weights = Arc::clone(weights);
        let (products, times) = if then == Then::Gated { (2, "2 x ") } else { (1, "") };
        let prepare = move |device: &HostDevice| {
            let x = Activations::random(device, rows, inner);
            let mut hidden = measure::values(rows * columns);
            let mut turn = 0;
            Prepared {
                work: Work::Flops(2.0 * (rows * inner * products * columns) as f64),
                call: Box::new(move |device| {
                    weights[turn % weights.len()](device, &x, &mut hidden);
                    turn += 1;
                }),
            }
        };
        let shape = format!("{rows} x {inner} to {times}{columns} {suffix}").trim_end().to_owned();
        Case { name: name.into(), shape, kernel, prepare: Box::new(prepare) }
    }
}

fn attentions() -> Vec<Case> {
    let case =
        |name: &str, sizes: HeadSizes, sequences: usize, queries: usize, segments: &'static [usize]| {
            let HeadSizes { query, width, .. } = sizes;
            let keys: usize = segments.iter().sum();
            let prepare = move |_: &HostDevice| {
                let attention = Attention::random(sizes, sequences, queries, segments);
                Prepared {
                    work: Work::Flops(attention.flops()),
                    call: Box::new(move |device| drop(black_box(attention.attend(device)))),
                }
            };
            Case {
                name: name.into(),
                shape: format!("{sequences} x {queries} over {keys}, {query} heads of {width}"),
                kernel: Kernel::fastest(),
                prepare: Box::new(prepare),
            }
        };
    let gemma = HeadSizes { query: 8, key_value: 1, width: 256 };
    let siglip = HeadSizes { query: 16, key_value: 16, width: 72 };
    vec![
        case("prefix attention", gemma, 1, 816, &[816]),
        case("vision attention", siglip, 3, 256, &[256]),
        case("expert attention", gemma, 1, 50, &[817, 50]),
        case("expert attention", gemma, 4, 50, &[817, 50]),
    ]
}

/// What is bound by memory and not by arithmetic.
fn element_wise() -> Vec<Case> {
    type Make = fn(usize, usize) -> Box<dyn FnMut(&HostDevice) + Send>;
    let norm = |name: &str, rows: usize, width: usize, make: Make| {
        let prepare = move |device: &HostDevice| Prepared {
            work: Work::Bytes(
                (rows * width * (size_of::<f32>() + measure::bytes_of_activation(device))) as f64,
            ),
            call: make(rows, width),
        };
        let shape = format!("{rows} x {width}");
        Case { name: name.into(), shape, kernel: Kernel::fastest(), prepare: Box::new(prepare) }
    };
    let layer_norm: Make = |rows, width| {
        let (norm, x) = (LayerNorm::random(width), measure::values(rows * width));
        Box::new(move |device| drop(black_box(norm.normalise(device, &x))))
    };
    let rms_norm: Make = |rows, width| {
        let (norm, x) = (RmsNorm::random(width), measure::values(rows * width));
        Box::new(move |device| drop(black_box(norm.normalise(device, &x))))
    };
    let rotate = move |_: &HostDevice| {
        let (rotary, mut x) = (Rotary::new(816, 256), measure::values(816 * 2048));
        Prepared {
            work: Work::Bytes((2 * size_of_val(&x[..])) as f64),
            call: Box::new(move |device| rotary.rotate(device, &mut x)),
        }
    };
    vec![
        norm("LayerNorm", 768, 1152, layer_norm),
        norm("RMSNorm", 816, 2048, rms_norm),
        Case {
            name: "rotation".into(),
            shape: "816 x 8 heads of 256".into(),
            kernel: Kernel::fastest(),
            prepare: Box::new(rotate),
        },
    ]
}
