//! Where the milliseconds went: what chips did for which requests, kept for a while.
//!
//! [`Journal`] takes down every [`Activity`] of a pipeline and puts those of a request together as a [`RequestTrace`].
//! [`Journal::path`] explains a request's latency: activities and waits, one after the other, without a gap
//! (*path-adds-up*). A pipeline without a journal takes nothing down.

mod activity;
mod journal;
mod passes;
mod path;
mod request_trace;
#[cfg(test)]
mod tests;
mod trace_id;

pub use activity::{Activity, Doing, Member, Transport};
pub use journal::{Cursor, Entry, Journal, Listener, News};
pub use path::{ChipLog, Leg, Reason, Segment};
pub use request_trace::{Attempt, Outcome, RequestTrace};
pub use trace_id::{ParentSpan, TraceId};

pub(crate) use journal::Submitted;
