//! The protocol that robots speak: openpi's, with optional keys of ours.

mod answer;
mod observation;
mod session;

pub use answer::Answer;
pub use observation::{Asked, BadObservation, Previous, Reader, Rtc};
pub(crate) use session::session;
