//! What a program takes of a chip's memory, and whether it holds together: our own checker, which needs no TT-NN.

use std::collections::BTreeSet;

use super::results::results;
use super::spec::Dtype;
use super::{Call, Op, Origin, Program, ProgramError, Refusal, Segment, ValueId};

/// Bytes of DRAM that a program takes at most at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Weights.
    pub weights: usize,
    /// What the host, other chips and other segments write and read.
    pub kept: usize,
    /// Intermediate tensors.
    pub passing: usize,
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
    let dtype = declared.first().map_or(Dtype::Bf16, |first| first.dtype);
    let given = results(&call.op, &|id| program.value(id).spec, dtype)?;
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
        footprint.passing = footprint.passing.max(peak(program, segment, &freed));
    }
    footprint
}

/// Most bytes of tensors local to a segment.
fn peak(program: &Program, segment: &Segment, freed: &BTreeSet<ValueId>) -> usize {
    let (mut now, mut most) = (0, 0);
    let bytes = |id: &ValueId| program.value(*id).spec.bytes();
    for Call { out, frees, .. } in &segment.calls {
        now += out.iter().filter(|id| freed.contains(id)).map(bytes).sum::<usize>();
        most = most.max(now);
        now -= frees.iter().map(bytes).sum::<usize>();
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
