//! Tenstorrent chips through TT-NN.
//!
//! What a slice does on a chip is a *program*: a plain list of TT-NN calls over tensors whose shapes, dtypes and places
//! are all written down before anything runs. The same program is run on a chip, interpreted on the host with the
//! chip's rounding, and written to a file that TT-NN's own validators check on mock chips.

pub mod bfp8;
mod chip;
#[cfg(feature = "ttnn")]
pub mod executor;
pub mod export;
mod interpret;
mod packed;
pub mod program;
mod slices;
#[cfg(any(test, feature = "ttnn"))]
mod threads;
mod weights;

pub use chip::{Chip, ChipError, Kept, LoadedProgram};
pub use interpret::Interpreter;
pub use packed::{Packed, Values};
pub(crate) use slices::Resident;
pub use slices::{Destination, Destinations, TtnnExpert, TtnnPrefix, TtnnVision};
pub use weights::{WeightCache, WeightError, Weights};
