//! Time as the pipeline sees it: the machine's, or that of a simulation.

use std::time::Duration;

use tokio::time::Instant;

/// Emulated nanoseconds in one nanosecond of tokio's time, when time is simulated. Tokio's timers count milliseconds;
/// with this stretch a millisecond of its time is an emulated microsecond.
const STRETCH: u32 = 1000;

/// Time since a pipeline's clock was started.
pub(crate) type Moment = Duration;

/// The clock of one pipeline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    stretch: u32,
}

impl Clock {
    /// The machine's time, from now on.
    pub(crate) fn real() -> Self {
        Self { started: Instant::now(), stretch: 1 }
    }

    /// Simulated time, for a runtime whose clock is paused: it passes as soon as everybody waits, a microsecond at a
    /// time.
    pub(crate) fn simulated() -> Self {
        Self { started: Instant::now(), stretch: STRETCH }
    }

    pub(crate) fn now(&self) -> Moment {
        self.started.elapsed() / self.stretch
    }

    /// Waits until a moment; not at all when it has passed.
    pub(crate) async fn wait_until(&self, moment: Moment) {
        if moment > self.now() {
            tokio::time::sleep_until(self.started + moment * self.stretch).await;
        }
    }

    pub(crate) async fn wait(&self, duration: Duration) {
        if !duration.is_zero() {
            tokio::time::sleep(duration * self.stretch).await;
        }
    }
}
