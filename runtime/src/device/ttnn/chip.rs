//! What runs programs: a chip through TT-NN, or the host in its place.

use std::any::Any;
use std::sync::Arc;

use tensact_topology::ChipId;

use super::program::{Program, ProgramError, Refusal, TensorSpec, ValueId};

/// A program could not be loaded or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChipError {
    /// The program asks for something that TT-NN refuses.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A weight of the program cannot be made from the checkpoint.
    #[error("weight `{weight}` of program `{program}`: {reason}")]
    Weight {
        /// The program.
        program: String,
        /// The weight.
        weight: String,
        /// Why not.
        reason: String,
    },
    /// The host wrote something else than the program takes.
    #[error("program `{program}` takes {expected} values of `{input}`, found {found}")]
    Input {
        /// The program.
        program: String,
        /// The input.
        input: String,
        /// Values that it takes, with padding.
        expected: usize,
        /// Values that it got.
        found: usize,
    },
    /// A program gives nothing of this name.
    #[error("program `{program}` has no output `{output}`")]
    NoOutput {
        /// The program.
        program: String,
        /// What was asked for.
        output: String,
    },
    /// A tensor that lies on a chip is no input of a program.
    #[error("program `{program}`: {refusal}")]
    OtherTensor {
        /// The program.
        program: String,
        /// Input, and what it takes.
        refusal: Box<Refusal>,
    },
    /// The chip, or TT-NN, failed.
    #[error("chip {chip}, program `{program}`, {place}: {message}")]
    Failed {
        /// The chip.
        chip: u32,
        /// The program.
        program: String,
        /// Segment and call.
        place: String,
        /// What TT-NN said.
        message: String,
    },
}

/// Something that programs can be loaded on, with the weights of one checkpoint.
pub trait Chip: Send + Sync {
    /// Which chip of its board it is.
    fn id(&self) -> ChipId;

    /// Loads a program: its weights, which programs share by name, and room for its inputs.
    ///
    /// # Errors
    /// When a weight cannot be made, or the chip has no room.
    fn load(self: Arc<Self>, program: Arc<Program>) -> Result<Box<dyn LoadedProgram>, ChipError>;
}

/// A program that is ready to run. Inputs, and whatever a segment leaves for others, stay between runs.
pub trait LoadedProgram: Send {
    /// The program.
    fn program(&self) -> &Arc<Program>;

    /// Writes all values of a float input, row after row, in its full (not stored) shape; they are rounded to its dtype.
    ///
    /// # Errors
    /// When there are not as many values as the input takes.
    fn write(&mut self, input: ValueId, values: &[f32]) -> Result<(), ChipError>;

    /// Writes a `u32` input.
    ///
    /// # Errors
    /// When there are not as many numbers as the input takes.
    fn write_numbers(&mut self, input: ValueId, numbers: &[u32]) -> Result<(), ChipError>;

    /// Runs a segment by its place in the program.
    ///
    /// # Errors
    /// When the chip fails.
    fn run(&mut self, segment: usize) -> Result<(), ChipError>;

    /// The values of a tensor that an earlier segment left, row after row.
    ///
    /// # Errors
    /// When the chip fails.
    fn read(&mut self, value: ValueId) -> Result<Vec<f32>, ChipError>;

    /// Leaves what such a tensor holds by itself on a chip, where other programs find it: on this one, or on another one
    /// of the board, where it arrives unasked.
    ///
    /// # Errors
    /// When a chip fails, or the board has no way there.
    fn keep(&mut self, value: ValueId, on: ChipId) -> Result<Arc<dyn Kept>, ChipError>;

    /// Makes room on a chip for so many tensors at a time that [`LoadedProgram::keep`] will leave there. Without it room is
    /// made when it is first needed, which may take a while.
    ///
    /// # Errors
    /// When there is no room, or no way there.
    fn make_room(&mut self, value: ValueId, on: ChipId, tensors: usize) -> Result<(), ChipError>;

    /// Overwrites an input with a tensor that lies on a chip of the board. Where the tensor has fewer rows the rest are
    /// zeros.
    ///
    /// # Errors
    /// When it is of another kind, or a chip fails.
    fn fill(&mut self, input: ValueId, from: &dyn Kept) -> Result<(), ChipError>;
}

/// A tensor that lies on a chip by itself. Its place is free again when nobody holds it any more.
pub trait Kept: Any + Send + Sync {
    /// Its shape, dtype and layout.
    fn spec(&self) -> TensorSpec;

    /// Its values, row after row.
    ///
    /// # Errors
    /// When the chip fails.
    fn read(&self) -> Result<Vec<f32>, ChipError>;
}

/// Whether a tensor can overwrite an input: of one kind, and with no more rows.
pub(super) fn check_fill(program: &Program, input: ValueId, found: TensorSpec) -> Result<(), ChipError> {
    let value = program.value(input);
    let rows = found.shape[2];
    let mut as_tall = found.in_memory(value.spec.memory);
    as_tall.shape[2] = value.spec.shape[2];
    if as_tall == value.spec && rows <= value.spec.shape[2] {
        return Ok(());
    }
    let (what, expected) = (format!("`{}`", value.name), value.spec.to_string());
    let refusal = Box::new(Refusal { what, expected, found: found.to_string() });
    Err(ChipError::OtherTensor { program: program.name.clone(), refusal })
}

/// Values of a tensor of so many rows in one with more of them.
pub(super) fn with_more_rows(values: &[f32], found: TensorSpec, expected: TensorSpec) -> Vec<f32> {
    let [.., rows, width] = found.shape;
    let mut padded = vec![0.0; expected.shape.iter().product()];
    let blocks = padded.chunks_exact_mut(expected.shape[2] * width).zip(values.chunks_exact(rows * width));
    blocks.for_each(|(padded, values)| padded[..values.len()].copy_from_slice(values));
    padded
}
