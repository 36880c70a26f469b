//! Slices of the stages on a chip: what the stages' traits ask for, as programs with their inputs padded and their results
//! cut to size. What the next slice takes stays on chips where its [`Destination`] is one, and goes over the host otherwise.

mod expert;
mod first_step;
mod pool;
mod prefix;
mod resident;
mod rows;
mod state;
mod vision;

pub(super) use expert::MOST_REQUESTS;
pub use expert::TtnnExpert;
pub use prefix::TtnnPrefix;
pub(crate) use resident::Resident;
pub use resident::{Destination, Destinations};
pub use vision::TtnnVision;
