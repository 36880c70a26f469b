//! What the robots of a run share, and what others see of it while it runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Plan;

/// What has happened so far, for those who watch.
#[derive(Debug, Default)]
pub struct Progress {
    connected: AtomicU64,
    sent: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Progress {
    /// Robots with a connection, now.
    pub fn robots(&self) -> u64 {
        self.connected.load(Relaxed)
    }

    /// Observations that were sent.
    pub fn observations(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Observations that were answered with actions.
    pub fn answers(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Observations that were refused.
    pub fn refusals(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    pub(super) fn connected(&self) {
        self.connected.fetch_add(1, Relaxed);
    }

    pub(super) fn lost(&self) {
        self.connected.fetch_sub(1, Relaxed);
    }

    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }
}

/// What the robots of a run share.
pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) progress: std::sync::Arc<Progress>,
    pub(super) start: Instant,
    /// Observations that may still be sent.
    left: AtomicU64,
    /// Shape of all actions: that of the first.
    pub(super) shape: OnceLock<Vec<usize>>,
    /// When the last observation may have been sent.
    closed: OnceLock<Duration>,
    /// Nothing is sent any more.
    pub(super) no_more: CancellationToken,
    /// Answers are not waited for any more.
    pub(super) give_up: CancellationToken,
}

impl Shared {
    /// The run starts now.
    pub(super) fn new(plan: Plan, progress: std::sync::Arc<Progress>) -> Self {
        Self {
            left: AtomicU64::new(plan.requests.unwrap_or(u64::MAX)),
            plan,
            progress,
            start: Instant::now(),
            shape: OnceLock::new(),
            closed: OnceLock::new(),
            no_more: CancellationToken::new(),
            give_up: CancellationToken::new(),
        }
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Time since the start in which observations were sent.
    pub(super) fn sending(&self) -> Duration {
        self.closed.get().copied().unwrap_or_else(|| self.now()).min(self.plan.duration)
    }

    /// Whether one more observation may be sent.
    pub(super) fn claim(&self) -> bool {
        let claimed = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        if matches!(claimed, Ok(1) | Err(_)) {
            self.stop_sending();
        }
        claimed.is_ok()
    }

    /// Ends the run, but for answers that are still to come.
    pub(super) fn stop_sending(&self) {
        self.closed.get_or_init(|| self.now());
        self.no_more.cancel();
    }

    /// Ends the run.
    pub(super) fn stop(&self) {
        self.stop_sending();
        self.give_up.cancel();
    }
}
