//! What one robot has seen.

use std::time::Duration;

use super::answer::ServerTimes;
use super::groups::Groups;

/// One answer with actions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) end_to_end_ms: f64,
    pub(super) server: ServerTimes,
}

/// What one robot has sent and what came back. Every observation that was sent is a sample, refused, bad or
/// unanswered.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) samples: Vec<Sample>,
    pub(super) refused: Groups,
    pub(super) bad: Groups,
    pub(super) unanswered: u64,
    /// Answers after the deadline.
    pub(super) late: u64,
    pub(super) skipped: u64,
    /// Connections that were opened.
    pub(super) opened: u64,
    pub(super) lost: Groups,
    /// Attempts to connect that failed.
    pub(super) failed: Groups,
    /// When it was done, from the start of the run.
    pub(super) ended: Duration,
}
