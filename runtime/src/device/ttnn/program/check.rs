//! What a program takes of a chip's memory, and whether it holds together: our own checker, which needs no TT-NN.

use std::collections::BTreeSet;

use super::results::{Wanted, results};
use super::spec::{Dtype, Memory};
use super::{Call, Op, Origin, Program, ProgramError, Refusal, Segment, ValueId};

/// Bytes that a program takes at most at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Weights.
    pub weights: usize,
    /// What the host, other chips and other segments write and read.
    pub kept: usize,
    /// Intermediate tensors in DRAM.
    pub dram: usize,
    /// Intermediate tensors in L1, over all cores.
    pub l1: usize,
}

/// Whether every call reads what is there, gives what it declares, and nothing that was freed is used.
///
/// # Errors
/// Names the first call that does not.
pub fn check(program: &Program) -> Result<(), ProgramError> {
    let mut there: BTreeSet<ValueId> =
        program.ids().filter(|(_, value)| value.origin != Origin::Call).map(|(id, _)| id).collect();
    for segment in &program.segments {
        for (index, call) in segment.calls.iter().enumerate() {
            check_call(program, &there, call).map_err(|refusal| ProgramError {
                program: program.name.clone(),
                segment: segment.name.clone(),
                call: index,
                op: call.op.name(),
                refusal: Box::new(refusal),
            })?;
            there.extend(&call.out);
            call.frees.iter().for_each(|id| {
                there.remove(id);
            });
        }
    }
    Ok(())
}

fn check_call(program: &Program, there: &BTreeSet<ValueId>, call: &Call) -> Result<(), Refusal> {
    let touched = call.op.reads().into_iter().chain(call.op.overwrites());
    for id in touched {
        if !there.contains(&id) {
            let found = format!("value {} ({}), which is not there", id.index(), program.value(id).name);
            return Err(Refusal {
                what: "an argument".into(),
                expected: "a tensor that is there".into(),
                found,
            });
        }
    }
    let declared: Vec<_> = call.out.iter().map(|id| program.value(*id).spec).collect();
    let wanted = match declared.first() {
        Some(first) => Wanted { dtype: first.dtype, memory: first.memory },
        None => Wanted { dtype: Dtype::Bf16, memory: Memory::Dram },
    };
    let given = results(&call.op, &|id| program.value(id).spec, wanted)?;
    if given == declared {
        return Ok(());
    }
    let tell =
        |specs: &[super::TensorSpec]| specs.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(Refusal { what: "its result".into(), expected: tell(&given), found: tell(&declared) })
}

/// The memory that a program needs.
pub fn footprint(program: &Program) -> Footprint {
    let mut footprint = Footprint::default();
    let freed: BTreeSet<ValueId> = program.calls().flat_map(|call| call.frees.iter().copied()).collect();
    for (id, value) in program.ids() {
        match value.origin {
            Origin::Weight(_) => footprint.weights += value.spec.bytes(),
            Origin::Call if freed.contains(&id) => {}
            Origin::Input | Origin::Buffer | Origin::Call => footprint.kept += value.spec.bytes(),
        }
    }
    for segment in &program.segments {
        let [dram, l1] = peak(program, segment, &freed);
        footprint.dram = footprint.dram.max(dram);
        footprint.l1 = footprint.l1.max(l1);
    }
    footprint
}

/// Most bytes of tensors local to a segment, in DRAM and in L1.
fn peak(program: &Program, segment: &Segment, freed: &BTreeSet<ValueId>) -> [usize; 2] {
    let (mut now, mut most) = ([0; 2], [0; 2]);
    let place = |id: &ValueId| usize::from(program.value(*id).spec.memory == Memory::L1);
    for Call { out, frees, .. } in &segment.calls {
        for id in out.iter().filter(|id| freed.contains(id)) {
            now[place(id)] += program.value(*id).spec.bytes();
        }
        most = [most[0].max(now[0]), most[1].max(now[1])];
        for id in frees {
            now[place(id)] -= program.value(*id).spec.bytes();
        }
    }
    most
}

impl Program {
    /// Multiply-adds × 2 on whole tiles, of one run of all segments.
    pub fn flop(&self) -> f64 {
        let padded = |id: ValueId| self.value(id).spec.padded().map(|n| n as f64);
        let of = |call: &Call| match &call.op {
            Op::Linear { x, weight, .. } => {
                let [a, b, rows, inner] = padded(*x);
                2.0 * a * b * rows * inner * padded(*weight)[3]
            }
            // Two products of the same size: scores, and their weighted sum.
            Op::Attention { q, k, .. } => {
                let [a, heads, queries, width] = padded(*q);
                4.0 * a * heads * queries * padded(*k)[2] * width
            }
            _ => 0.0,
        };
        self.calls().map(of).sum()
    }
}
