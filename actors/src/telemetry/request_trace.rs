//! All that happened to one request.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Activity, TraceId};
use crate::clock::Moment;
use crate::request::Refusal;

/// A request from its arrival to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestTrace {
    /// Its name.
    pub trace: TraceId,
    /// The span that it was asked from.
    pub span: Option<u64>,
    /// Its number, counted from 0 as requests came.
    pub number: u64,
    /// Which robot asked.
    pub robot: Option<Arc<str>>,
    /// When it came to the pipeline, since the pipeline's start.
    pub arrived: Moment,
    /// When it was prepared and handed in.
    pub submitted: Moment,
    /// By when it was wanted.
    pub deadline: Option<Moment>,
    /// Attempts to compute it, in order; none if it was refused before.
    pub attempts: Vec<Attempt>,
    /// When it ended.
    pub ended: Moment,
    /// How it ended.
    pub outcome: Outcome,
}

/// One attempt to compute a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Number of the pipeline.
    pub pipeline: usize,
    /// When it was sent there.
    pub dispatched: Moment,
    /// What was done for it, by when it ended.
    pub activities: Vec<Arc<Activity>>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names say it; see `Refusal`
pub enum Outcome {
    Done,
    QueueFull,
    DeadlineImpossible,
    Superseded,
    Expired,
    Failed,
    OutOfService,
    Closed,
    Cancelled,
}

impl Outcome {
    /// As metrics and files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::QueueFull => "queue_full",
            Self::DeadlineImpossible => "deadline_impossible",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::OutOfService => "out_of_service",
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<&Refusal> for Outcome {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { .. } => Self::QueueFull,
            Refusal::DeadlineImpossible { .. } => Self::DeadlineImpossible,
            Refusal::Superseded { .. } => Self::Superseded,
            Refusal::Expired { .. } => Self::Expired,
            Refusal::Failed { .. } => Self::Failed,
            Refusal::OutOfService { .. } => Self::OutOfService,
            Refusal::Closed => Self::Closed,
        }
    }
}

impl RequestTrace {
    /// From arrival to end.
    pub fn latency(&self) -> Moment {
        self.ended - self.arrived
    }

    /// All that was done for it.
    pub fn activities(&self) -> impl Iterator<Item = &Arc<Activity>> {
        self.attempts.iter().flat_map(|attempt| &attempt.activities)
    }
}
