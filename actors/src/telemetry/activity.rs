//! What chips do, and what requests wait for without any chip.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tensact_topology::cost::Route;
use tensact_topology::{ChipId, LayerRange, StageKind};

use super::TraceId;
use crate::clock::Moment;

/// Something that the chips of a slice did for some requests, or that held those requests up there.
#[derive(Debug, Clone, PartialEq)]
pub struct Activity {
    /// Number of the pipeline in the deployment.
    pub pipeline: usize,
    /// Place of the slice in its pipeline.
    pub slice: usize,
    /// Stage of the slice.
    pub stage: StageKind,
    /// Layers that were run, or that the slice holds.
    pub layers: LayerRange,
    /// Chips that it took; none where a request waited without any.
    pub chips: Arc<[ChipId]>,
    /// What was done.
    pub doing: Doing,
    /// When it began, since the pipeline's start.
    pub began: Moment,
    /// When it ended.
    pub ended: Moment,
    /// Those it was done for.
    pub members: Vec<Member>,
}

/// A request in an activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// The request.
    pub trace: TraceId,
    /// Number of the request, counted from 0 as they came.
    pub request: u64,
    /// Which attempt to compute it, counted from 1.
    pub attempt: u32,
    /// Its denoising step, counted from 0, where the expert works.
    pub step: Option<usize>,
}

/// What an activity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Doing {
    /// All layers of the slice; of the expert, one denoising step.
    Pass {
        /// Most images of a member.
        cameras: usize,
    },
    /// One layer, behind which keys and values leave, or which follows them.
    Layer {
        /// Most images of a member.
        cameras: usize,
        /// Whether the pass ends with it.
        last: bool,
    },
    /// Sending to another slice.
    Send {
        /// One of the chips that receive.
        to: ChipId,
        /// Bytes that are sent.
        bytes: u64,
        /// How.
        transport: Transport,
    },
    /// Taking what another slice has sent.
    Receive {
        /// One of the chips that have sent.
        from: ChipId,
        /// Bytes that are received.
        bytes: u64,
        /// How.
        transport: Transport,
    },
    /// Images on their way to the board.
    Upload,
    /// Nothing could be sent, because the receiver's queue was full.
    Blocked {
        /// One of the chips that did not receive.
        to: ChipId,
    },
    /// A fault that the simulation injected held the chips.
    Stall,
}

impl Doing {
    /// In one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pass { .. } => "pass",
            Self::Layer { .. } => "layer",
            Self::Send { .. } => "send",
            Self::Receive { .. } => "receive",
            Self::Upload => "upload",
            Self::Blocked { .. } => "blocked",
            Self::Stall => "stall",
        }
    }

    /// Whether it computes.
    pub fn computes(&self) -> bool {
        matches!(self, Self::Pass { .. } | Self::Layer { .. })
    }
}

/// How tensors go from chip to chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// They stay where they are.
    Local,
    /// A fabric socket.
    Socket,
    /// Over the host's memory.
    Host,
}

impl From<Route> for Transport {
    fn from(route: Route) -> Self {
        match route {
            Route::Local => Self::Local,
            Route::Socket { .. } => Self::Socket,
            Route::Host => Self::Host,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Socket => "socket",
            Self::Host => "host",
        })
    }
}

impl Activity {
    /// Its chips as people write them: `4`, or `0, 1`.
    pub fn chip_names(&self) -> String {
        self.chips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// At which denoising step the request with this number was.
    pub fn step_of(&self, request: u64) -> Option<usize> {
        self.members.iter().find(|member| member.request == request).and_then(|member| member.step)
    }

    /// What was done for the request with this number, in words: `prefix layers 0..18 on chip 4`.
    pub fn words(&self, request: u64) -> String {
        let Self { stage, layers, .. } = self;
        let step = self.step_of(request);
        let work = match (stage, step) {
            (StageKind::Expert, Some(step)) => format!("denoising step {step}, layers {layers}"),
            _ => format!("{stage} layers {layers}"),
        };
        let on = match self.chips.len() {
            0 => String::new(),
            1 => format!(" on chip {}", self.chip_names()),
            _ => format!(" on chips {}", self.chip_names()),
        };
        match self.doing {
            Doing::Pass { .. } | Doing::Layer { .. } => format!("{work}{on}"),
            Doing::Send { to, .. } => format!("{stage}{on} sends to chip {to}"),
            Doing::Receive { from, .. } => format!("{stage}{on} receives from chip {from}"),
            Doing::Upload => "images on their way to the board".into(),
            Doing::Blocked { to } => {
                format!("{stage} layers {layers} could not send: the queue of chip {to} was full")
            }
            Doing::Stall => format!("{stage}{on} was stalled"),
        }
    }
}
