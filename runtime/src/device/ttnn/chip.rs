//! What runs programs: a chip through TT-NN, or the host in its place.

use std::sync::Arc;

use super::program::{Program, ProgramError, ValueId};

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
}
