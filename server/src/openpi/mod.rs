//! The protocol that robots speak: openpi's, with optional keys of ours.

mod answer;
mod observation;
mod rtc;
mod session;

pub use answer::Answer;
pub use observation::{Asked, BadObservation, Reader};
pub use rtc::{Previous, Rtc};
pub(crate) use session::session;
