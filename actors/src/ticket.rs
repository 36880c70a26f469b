//! An attempt of a request to pass a pipeline: what travels along the edges beside its tensors.
//!
//! Invariants:
//! - *one-outcome*: an attempt ends once; whoever ends it first decides how ([`Fate`]).
//! - *own-result*: actions reach a request only through its own ticket.
//! - *nothing-lost*: when the last holder of a ticket lets go of it, wherever that is, the scheduler is told; a ticket
//!   that vanished without an end counts as failed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tensact_runtime::Tensor;
use tensact_runtime::policy::Sample;

use crate::clock::Moment;
use crate::home::Home;
use crate::scheduler::{Ended, Gone};
use crate::telemetry::{Member, TraceId};

/// A request, for as long as the pipeline runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// One attempt of a request. Attempts are never mixed up, though their tensors may be in flight at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AttemptId {
    pub(crate) request: RequestId,
    /// Counted from 1.
    pub(crate) number: u32,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With actions, in model units.
    Done(Tensor, Marks),
    /// Its deadline passed; it was found at this boundary.
    Expired(&'static str),
    /// The stage that computed it failed.
    Failed(Arc<str>),
    /// A stage that held it failed while it computed something else.
    Disturbed(Arc<str>),
}

/// When an attempt passed the stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) dispatched: Moment,
    pub(crate) seen: Moment,
    pub(crate) cached: Moment,
}

/// Whether an attempt has ended. Set once.
#[derive(Debug, Default)]
pub(crate) struct Fate(OnceLock<()>);

impl Fate {
    /// Whether this call ended it.
    pub(crate) fn end(&self) -> bool {
        self.0.set(()).is_ok()
    }

    pub(crate) fn ended(&self) -> bool {
        self.0.get().is_some()
    }
}

/// What all messages of an attempt hold.
pub(crate) struct Ticket {
    pub(crate) id: AttemptId,
    pub(crate) trace: TraceId,
    pub(crate) pipeline: usize,
    pub(crate) sample: Arc<Sample>,
    pub(crate) deadline: Option<Moment>,
    pub(crate) dispatched: Moment,
    pub(crate) fate: Arc<Fate>,
    /// It failed before: it runs alone, so that it cannot take others with it again.
    pub(crate) alone: bool,
    pub(crate) marks: Passed,
    pub(crate) home: Arc<Home>,
}

/// When an attempt passed the stages, as far as it has.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    seen: OnceLock<Moment>,
    cached: OnceLock<Moment>,
}

impl Ticket {
    /// The request for those who look on.
    pub(crate) fn member(&self, step: Option<usize>) -> Member {
        let AttemptId { request, number } = self.id;
        Member { trace: self.trace, request: request.0, attempt: number, step }
    }

    /// Cameras that are there.
    pub(crate) fn cameras(&self) -> usize {
        self.sample.input.images.iter().flatten().count()
    }

    /// Whether it may go on: not ended, and not past its deadline, which ends it here (*no-late-start*).
    pub(crate) fn goes_on(&self, now: Moment, boundary: &'static str) -> bool {
        if self.deadline.is_some_and(|deadline| now > deadline) {
            self.end(End::Expired(boundary));
        }
        !self.fate.ended()
    }

    pub(crate) fn mark_seen(&self, now: Moment) {
        let _ = self.marks.seen.set(now);
    }

    pub(crate) fn mark_cached(&self, now: Moment) {
        let _ = self.marks.cached.set(now);
    }

    /// Ends the attempt with actions.
    pub(crate) fn finish(&self, actions: Tensor) {
        let mark = |mark: &OnceLock<Moment>| mark.get().copied().unwrap_or(self.dispatched);
        let marks = Marks {
            dispatched: self.dispatched,
            seen: mark(&self.marks.seen),
            cached: mark(&self.marks.cached),
        };
        self.end(End::Done(actions, marks));
    }

    /// Ends the attempt, unless it has ended.
    pub(crate) fn end(&self, end: End) {
        if self.fate.end() {
            self.home.tell(Ended { id: self.id, pipeline: self.pipeline, end });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.home.tell(Gone { id: self.id, pipeline: self.pipeline, unended: self.fate.end() });
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.id.request, self.id.number)
    }
}

/// Milliseconds, as numbers that people read.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_an_attempt_first_decides() {
        let fate = Fate::default();
        assert!(!fate.ended() && fate.end() && fate.ended() && !fate.end());
    }
}
