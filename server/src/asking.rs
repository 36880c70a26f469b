//! A request on its way through the server.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::failure::Failure;
use crate::openpi::Answer;
use crate::serving::Serving;
use crate::telemetry::traces::{Ended, TraceContext};

/// A request that has no outcome yet; if it is dropped without one, nobody waits for it any more.
pub(crate) struct Asking<'s> {
    pub(crate) serving: &'s Serving,
    /// As its span is called.
    pub(crate) name: &'static str,
    pub(crate) context: &'s mut TraceContext,
    pub(crate) arrived: Instant,
    /// How long its message was read.
    pub(crate) read: Duration,
    pub(crate) robot: Option<Arc<str>>,
    pub(crate) answered: bool,
}

impl Asking<'_> {
    pub(crate) fn answered(mut self, answer: &Result<Answer, Failure>) {
        self.answered = true;
        self.serving.metrics.record(answer, self.arrived.elapsed());
        match answer {
            Ok(answer) => self.ended("done", None, answer.is_late()),
            Err(failure) => self.ended(failure.outcome(), Some(failure.to_string()), false),
        }
    }

    fn ended(&self, outcome: &'static str, problem: Option<String>, late: bool) {
        let traces = &self.serving.traces;
        if !traces.is_on() {
            return;
        }
        let answered = SystemTime::now();
        let arrived = answered.checked_sub(self.arrived.elapsed()).unwrap_or(answered);
        let ended = Ended {
            context: self.context.clone(),
            name: self.name,
            robot: self.robot.clone(),
            outcome,
            problem,
            arrived,
            read: arrived + self.read,
            answered,
            late,
        };
        traces.ended(ended, self.serving.policy().map(|policy| policy.pipeline.journal()));
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.serving.metrics.cancelled(self.arrived.elapsed());
            self.ended("cancelled", None, false);
        }
    }
}
