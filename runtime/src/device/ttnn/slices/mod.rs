//! Slices of the stages on a chip: what the stages' traits ask for, as programs with their inputs padded and their results
//! cut to size. Everything goes through the host: tensors are written before a segment runs and read behind it.

mod expert;
mod first_step;
mod pool;
mod prefix;
mod rows;
mod state;
mod vision;

pub(super) use expert::MOST_REQUESTS;
pub use expert::TtnnExpert;
pub use prefix::TtnnPrefix;
pub use vision::TtnnVision;
