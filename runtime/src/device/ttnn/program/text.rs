//! Programs for people to read, a call a line.

use std::collections::BTreeSet;
use std::fmt;

use super::{Call, Op, Origin, Program, TensorSpec, ValueId};

/// A tensor by what it is called, or by number where a call makes it.
struct Named<'a>(&'a Program, ValueId);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(program, id) = self;
        let value = program.value(*id);
        match value.origin {
            Origin::Call => write!(f, "%{}", id.index()),
            _ => write!(f, "<{}>", value.name),
        }
    }
}

/// Places of values are told apart from other arguments.
fn arguments(program: &Program, op: &Op) -> Vec<String> {
    let mut arguments: Vec<String> =
        op.reads().into_iter().chain(op.overwrites()).map(|id| Named(program, id).to_string()).collect();
    let activation = match op {
        Op::Linear { activation, .. } | Op::Multiply { activation, .. } => *activation,
        Op::Activate { activation, .. } => Some(*activation),
        _ => None,
    };
    arguments.extend(activation.map(|activation| format!("{activation:?}").to_lowercase()));
    match op {
        Op::Linear { compute, .. } => arguments.push(format!("{:?}", compute.fidelity).to_lowercase()),
        Op::MultiplyScalar { value, .. } => arguments.push(value.to_string()),
        Op::SplitHeads { heads, kv_heads, .. } => arguments.push(format!("{heads} + 2 · {kv_heads} heads")),
        Op::Attention { scale, q_chunk, k_chunk, .. } => {
            arguments.push(format!("scale {scale}, chunks of {q_chunk} × {k_chunk}"));
        }
        Op::Concat { dim, .. } => arguments.push(format!("dim {dim}")),
        Op::Slice { begin, end, .. } => arguments.push(format!("{begin:?}..{end:?}")),
        Op::Send { socket, .. } | Op::Receive { socket, .. } => {
            arguments.push(format!("socket {}", socket.0))
        }
        _ => {}
    }
    arguments
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}", self.name)?;
        for segment in &self.segments {
            writeln!(f, "\n{}:", segment.name)?;
            for call in &segment.calls {
                writeln!(f, "  {}", line(self, call))?;
            }
            for (name, id) in &segment.outputs {
                writeln!(f, "  -> {name}: {}", Named(self, *id))?;
            }
        }
        writeln!(f)?;
        let used: BTreeSet<ValueId> =
            self.calls().flat_map(|call| call.op.reads().into_iter().chain(call.op.overwrites())).collect();
        for (id, value) in self.ids().filter(|(_, value)| value.origin != Origin::Call) {
            let kind = match value.origin {
                Origin::Weight(_) => "weight",
                Origin::Input => "input",
                _ => "buffer",
            };
            let unused = if used.contains(&id) { "" } else { ", which nothing reads" };
            writeln!(f, "{kind} <{}>: {}{unused}", value.name, value.spec)?;
        }
        Ok(())
    }
}

fn line(program: &Program, call: &Call) -> String {
    let arguments = arguments(program, &call.op).join(", ");
    let out: Vec<String> = call.out.iter().map(|id| format!("%{}", id.index())).collect();
    let specs: Vec<TensorSpec> = call.out.iter().map(|id| program.value(*id).spec).collect();
    let made = match &specs[..] {
        [] => return format!("{}({arguments})", call.op.name()),
        [spec, ..] => spec,
    };
    format!("{} = {}({arguments}): {made}", out.join(", "), call.op.name())
}
