//! Programs: what a slice does on a chip, written down call by call.

mod builder;
mod check;
mod decoder;
mod expert;
mod export;
mod op;
mod prefix;
mod recipe;
mod results;
mod shape;
mod spec;
mod text;
mod vision;

pub use builder::{Builder, Numerics, Wiring};
pub use check::{Footprint, check, footprint};
pub use expert::{expert_state, expert_step};
pub use op::{Activation, Compute, Op, SocketId, ValueId};
pub use prefix::{prefix_embedding, prefix_layers};
pub use recipe::{Part, Recipe, Spread};
pub use shape::{HeadLayout, PrefixRows, StepShape};
pub use spec::{BFP8_BLOCK, Dtype, Layout, Memory, TILE, TensorSpec};
pub use vision::vision;

/// Where a tensor of a program comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Made from the checkpoint when the slice is loaded, and never changed.
    Weight(Recipe),
    /// Written by the host before a run.
    Input,
    /// Lies there for others to overwrite: a landing place for what other chips send.
    Buffer,
    /// The result of a call.
    Call,
}

/// A tensor of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// What it is in the model.
    pub name: String,
    /// Shape, dtype and place.
    pub spec: TensorSpec,
    /// Where it comes from.
    pub origin: Origin,
}

/// A call and the tensors it makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What is called.
    pub op: Op,
    /// What it gives.
    pub out: Vec<ValueId>,
    /// Tensors that nothing reads any more: local to the segment, and read for the last time by this call.
    pub frees: Vec<ValueId>,
}

/// Calls that run without anybody looking in between: one layer, or what comes before or after all layers. On a chip
/// each is one trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// `embed`, `layer 3`, …
    pub name: String,
    /// In order.
    pub calls: Vec<Call>,
    /// What the host may read after it, by name.
    pub outputs: Vec<(String, ValueId)>,
}

/// What a slice does on a chip for inputs of one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Slice and shape, as in `prefix 0..18, 832 tokens`.
    pub name: String,
    /// Every tensor that calls name.
    pub values: Vec<Value>,
    /// In the order in which they run for the first time.
    pub segments: Vec<Segment>,
}

/// A call that TT-NN would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("program `{program}`, segment `{segment}`, call {call} ({op}): {refusal}")]
pub struct ProgramError {
    /// The program.
    pub program: String,
    /// The segment.
    pub segment: String,
    /// Number of the call in its segment.
    pub call: usize,
    /// The operation.
    pub op: &'static str,
    /// What is wrong.
    pub refusal: Box<Refusal>,
}

/// What is wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} should be {expected}, found {found}")]
pub struct Refusal {
    /// Which argument.
    pub what: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl Program {
    /// A tensor.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// All tensors with their numbers.
    pub fn ids(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        (0..).map(ValueId).zip(&self.values)
    }

    /// All calls, first segment first.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        self.segments.iter().flat_map(|segment| &segment.calls)
    }

    /// The segment of this name.
    pub fn segment(&self, name: &str) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.name == name)
    }

    /// The tensor that the host writes under this name.
    pub fn input(&self, name: &str) -> Option<ValueId> {
        let is_input = |(_, value): &(ValueId, &Value)| value.name == name && value.origin == Origin::Input;
        self.ids().find(is_input).map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests;
