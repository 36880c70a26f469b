//! What runs where, resolved: pipelines of stage slices on chips, and the edges between them.

use serde::{Deserialize, Serialize};

use crate::{ChipId, LayerRange, StageKind, WeightDtype};

/// Fewest requests an edge holds: with one, sender and receiver take turns instead of overlapping.
pub const QUEUE_MIN: usize = 2;

/// What executes a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The host's processor, with fused kernels.
    Host,
    /// A Tenstorrent chip through TT-NN.
    Ttnn,
    /// No chip: time and memory by the cost model.
    Emulated,
}

/// How several chips share one slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// They do not: one chip.
    Whole,
    /// Every chip holds the same vision layers; cameras are dealt out.
    Cameras,
    /// Every chip holds a part of each layer, with two all-reduces per layer.
    Tensor,
}

/// Where the weights of a slice stay while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residence {
    /// Read from DRAM by every pass.
    Dram,
    /// Loaded into L1 once.
    L1,
}

/// How an edge carries tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// A socket where the fabric has a link, else over the host.
    Auto,
    /// A fabric socket; the chips must share a link.
    Socket,
    /// Down to the host and up again.
    Host,
}

/// A run of layers of one stage on the chips that hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// Stage.
    pub stage: StageKind,
    /// Layers of that stage.
    pub layers: LayerRange,
    /// Chips, one unless `split` says otherwise.
    pub chips: Vec<ChipId>,
    /// How the chips share it.
    pub split: Split,
    /// Stored form of the weights.
    pub weights: WeightDtype,
    /// What executes it.
    pub device: DeviceKind,
    /// Where the weights stay.
    pub residence: Residence,
    /// How what it produces leaves.
    pub transport: Transport,
    /// Requests its input holds.
    pub queue: usize,
}

impl Slice {
    /// A slice on one chip with `bfp8_b` weights in DRAM, sockets where possible and the shortest queue.
    pub fn on(stage: StageKind, layers: LayerRange, chip: ChipId) -> Self {
        Self {
            stage,
            layers,
            chips: vec![chip],
            split: Split::Whole,
            weights: WeightDtype::Bfp8B,
            device: DeviceKind::Ttnn,
            residence: Residence::Dram,
            transport: Transport::Auto,
            queue: QUEUE_MIN,
        }
    }

    /// Chips that the cameras of a request are dealt out to: 1 where they are not.
    pub fn camera_chips(&self) -> usize {
        if self.split == Split::Cameras { self.chips.len().max(1) } else { 1 }
    }

    /// The same slice shared by several chips.
    pub fn shared(self, chips: Vec<ChipId>, split: Split) -> Self {
        Self { chips, split, ..self }
    }
}

/// What an edge carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Activations between two slices of the same stage, once per request.
    Hidden,
    /// Image tokens into the prefix.
    ImageTokens,
    /// Keys and values of the layers both ends hold.
    Cache,
    /// Activations of the expert, once per denoising step.
    Step,
}

/// A way from one slice to another, by their places in the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The slice that sends.
    pub from: usize,
    /// The slice that receives.
    pub to: usize,
    /// What it sends.
    pub payload: Payload,
    /// Layers of cache it carries; 0 for other payloads.
    pub layers: usize,
}

/// One whole policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Pipeline {
    /// Slices in the order an observation meets them: by stage, then by layer.
    pub slices: Vec<Slice>,
}

impl Pipeline {
    /// A pipeline of these slices, put in order.
    pub fn new(mut slices: Vec<Slice>) -> Self {
        slices.sort_by_key(|slice| (slice.stage, slice.layers.start(), slice.layers.end()));
        Self { slices }
    }

    /// Slices of a stage with their places, in order of layers.
    pub fn of(&self, stage: StageKind) -> impl DoubleEndedIterator<Item = (usize, &Slice)> {
        self.slices.iter().enumerate().filter(move |(_, slice)| slice.stage == stage)
    }

    /// All chips it uses, each once.
    pub fn chips(&self) -> Vec<ChipId> {
        let mut chips: Vec<ChipId> = self.slices.iter().flat_map(|slice| slice.chips.clone()).collect();
        chips.sort_unstable();
        chips.dedup();
        chips
    }

    /// All edges of the placement graph.
    pub fn edges(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        let places = |stage| self.of(stage).map(|(place, _)| place).collect::<Vec<usize>>();
        let (vision, prefix, expert) =
            (places(StageKind::Vision), places(StageKind::Prefix), places(StageKind::Expert));
        let chain = |stage: &[usize], payload| {
            stage
                .windows(2)
                .map(|pair| Edge { from: pair[0], to: pair[1], payload, layers: 0 })
                .collect::<Vec<_>>()
        };
        edges.extend(chain(&vision, Payload::Hidden));
        if let (Some(from), Some(to)) = (vision.last(), prefix.first()) {
            edges.push(Edge { from: *from, to: *to, payload: Payload::ImageTokens, layers: 0 });
        }
        edges.extend(chain(&prefix, Payload::Hidden));
        for from in &prefix {
            for to in &expert {
                let (a, b) = (self.slices[*from].layers, self.slices[*to].layers);
                let layers = a.end().min(b.end()).saturating_sub(a.start().max(b.start()));
                if layers > 0 {
                    edges.push(Edge { from: *from, to: *to, payload: Payload::Cache, layers });
                }
            }
        }
        edges.extend(chain(&expert, Payload::Step));
        if let [first, .., last] = expert[..] {
            edges.push(Edge { from: last, to: first, payload: Payload::Step, layers: 0 });
        }
        edges
    }
}

/// Everything a deployment runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Placement {
    /// Pipelines side by side.
    pub pipelines: Vec<Pipeline>,
}
