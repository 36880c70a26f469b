//! Time and memory of slices and pipelines on a board.
//!
//! A slice takes, per pass, with every matrix padded to 32 × 32 tiles:
//! `matmul FLOP / (peak · matmul_utilisation) + weight bytes / (DRAM rate · dram_efficiency)
//!  + attention FLOP / (rate of the cores that have a tile · attention_utilisation) + operations · launch_us
//!  + all-reduces`.
//! The parts are added, not overlapped: that is what the published latencies show when cameras, steps and cores vary.
//! Constants and their sources: `calibration.toml`.

mod calibration;
mod critical_path;
mod pipeline;

pub use calibration::{Calibration, Program};
pub use pipeline::PipelineCost;

use serde::Serialize;

use calibration::ProgramCounts;

use crate::placement::{Edge, Payload, Pipeline, Residence, Slice, Split, Transport};
use crate::workload::{Op, OpKind, RequestShape, SliceMemory, cache_bytes, slice_memory, slice_work};
use crate::{Arch, Board, ChipId, ChipSpec, Fidelity, ModelSizes, StageKind, WeightDtype};

/// Where the time of one pass of a slice goes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PassCost {
    /// Matrix products.
    pub matmul_ms: f64,
    /// Reading weights from DRAM.
    pub weights_ms: f64,
    /// Attention.
    pub attention_ms: f64,
    /// Launching operations.
    pub launch_ms: f64,
    /// All-reduces between the chips of a tensor split.
    pub collective_ms: f64,
}

impl PassCost {
    /// All of it.
    pub fn total_ms(&self) -> f64 {
        self.matmul_ms + self.weights_ms + self.attention_ms + self.launch_ms + self.collective_ms
    }

    /// The cost of `times` such passes.
    pub fn times(self, times: f64) -> Self {
        Self {
            matmul_ms: self.matmul_ms * times,
            weights_ms: self.weights_ms * times,
            attention_ms: self.attention_ms * times,
            launch_ms: self.launch_ms * times,
            collective_ms: self.collective_ms * times,
        }
    }

    fn add(self, other: Self) -> Self {
        Self {
            matmul_ms: self.matmul_ms + other.matmul_ms,
            weights_ms: self.weights_ms + other.weights_ms,
            attention_ms: self.attention_ms + other.attention_ms,
            launch_ms: self.launch_ms + other.launch_ms,
            collective_ms: self.collective_ms + other.collective_ms,
        }
    }
}

/// Time and memory of a slice on each of its chips.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SliceCost {
    /// One pass: the whole slice for vision and prefix, one denoising step for the expert.
    pub pass: PassCost,
    /// Passes per request.
    pub passes: usize,
    /// Memory.
    pub memory: SliceMemory,
}

impl SliceCost {
    /// Time of a request (or a batch) in this slice.
    pub fn total_ms(&self) -> f64 {
        self.pass.total_ms() * self.passes as f64
    }
}

/// How an edge is carried on a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Both ends are the same chip.
    Local,
    /// Over a direct link with so many lanes.
    Socket {
        /// Parallel Ethernet links.
        lanes: u32,
    },
    /// Over the host.
    Host,
}

/// One edge with its cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EdgeCost {
    /// Place of the sending slice.
    pub from: usize,
    /// Place of the receiving slice.
    pub to: usize,
    /// What is sent.
    pub payload: Payload,
    /// How.
    pub route: Route,
    /// Bytes of one transfer.
    pub bytes: u64,
    /// Transfers per request.
    pub times: usize,
    /// One transfer.
    pub transfer_ms: f64,
}

/// Everything a cost depends on but the placement.
#[derive(Debug, Clone, Copy)]
pub struct CostModel<'a> {
    /// Board.
    pub board: &'a Board,
    /// Policy.
    pub sizes: &'a ModelSizes,
    /// What a call asks for.
    pub request: RequestShape,
    /// How the chips are programmed.
    pub program: Program,
    /// Constants.
    pub calibration: &'a Calibration,
    /// Whether chips in a row or column have a link that closes it into a ring.
    pub rings: bool,
    /// Whether a layer's keys and values leave as soon as they exist, and the first denoising step follows them.
    pub layerwise: bool,
}

impl<'a> CostModel<'a> {
    /// The model for a board with the program and links it is known to have, and the cache handed over layer by layer.
    pub fn new(
        board: &'a Board,
        sizes: &'a ModelSizes,
        request: RequestShape,
        calibration: &'a Calibration,
    ) -> Self {
        let program = Program::for_arch(board.arch());
        Self { board, sizes, request, program, calibration, rings: false, layerwise: true }
    }

    /// Time and memory of a slice on each of its chips; nothing when its first chip is not on the board.
    pub fn slice(&self, slice: &Slice) -> Option<SliceCost> {
        let spec = self.board.chip(*slice.chips.first()?)?.spec;
        let counts = self.calibration.counts(self.program);
        let work = slice_work(self.sizes, slice, &self.request, counts.savings);
        let (ops, passes) = match slice.stage {
            StageKind::Expert => (&work.each_step, self.request.steps),
            StageKind::Vision | StageKind::Prefix => (&work.once, 1),
        };
        let mut pass = self.ops_cost(&spec, slice, ops);
        pass.launch_ms = self.launches(slice, counts) * self.calibration.launch_us(self.program, &spec) / 1e3;
        pass.collective_ms = self.collectives_ms(slice);
        Some(SliceCost { pass, passes, memory: slice_memory(self.sizes, slice, &self.request, 0) })
    }

    fn ops_cost(&self, spec: &ChipSpec, slice: &Slice, ops: &[Op]) -> PassCost {
        let tiled = spec.arch != Arch::Host;
        let peak = spec.peak_tflops(slice.weights) * 1e9;
        let utilisation = match spec.arch {
            Arch::Host => self.calibration.fitted.host_utilisation,
            _ => self.calibration.fitted.matmul_utilisation,
        };
        let mut cost = PassCost::default();
        for op in ops {
            let flop = op.flop(tiled);
            match op.kind {
                OpKind::Matmul { .. } => {
                    cost.matmul_ms += flop / (peak * utilisation);
                    if slice.residence == Residence::Dram {
                        let bytes = slice.weights.bytes(op.weights(tiled)) as f64;
                        cost.weights_ms +=
                            bytes / (spec.dram_gb_per_s * self.calibration.fitted.dram_efficiency * 1e6);
                    }
                }
                OpKind::Attention { .. } if !tiled => cost.attention_ms += flop / (peak * utilisation),
                OpKind::Attention { queries, heads, .. } => {
                    // A head's row of query tiles is the least a core takes.
                    let busy = (queries.div_ceil(32) * heads).min(u64::from(spec.cores));
                    let rate = spec.peak_tflops(WeightDtype::Bfp8B) * 1e9 / Fidelity::HiFi2.passes()
                        * busy as f64
                        / f64::from(spec.cores);
                    cost.attention_ms += flop / (rate * self.calibration.published.attention_utilisation);
                }
            }
        }
        cost
    }

    fn launches(&self, slice: &Slice, counts: &ProgramCounts) -> f64 {
        // Beside the blocks a stage embeds, projects and norms: about half a dozen operations at its ends.
        let layers = slice.layers.len() as f64;
        let all = self.sizes.layers(slice.stage) as f64;
        let (each, ends) = match slice.stage {
            StageKind::Vision => (counts.vision, 6.0),
            StageKind::Prefix => (counts.prefix, 3.0),
            StageKind::Expert => (counts.expert, 6.0),
        };
        layers * each + ends * layers / all
    }

    fn collectives_ms(&self, slice: &Slice) -> f64 {
        if slice.split != Split::Tensor || slice.chips.len() < 2 {
            return 0.0;
        }
        let published = &self.calibration.published;
        let tokens = match slice.stage {
            StageKind::Expert => self.sizes.suffix_tokens(),
            _ => self.request.prefix_tokens(self.sizes),
        } * self.request.batch;
        // Each chip sends (n - 1) / n of the data twice.
        let share = |n: f64| (n - 1.0) / n;
        let data = tokens.next_multiple_of(32) as f64 / published.all_reduce_tokens
            * share(slice.chips.len() as f64)
            / share(published.all_reduce_chips);
        let factor = if self.rings { 1.0 } else { self.calibration.fitted.line_collective_factor };
        2.0 * slice.layers.len() as f64 * published.all_reduce_us * data * factor / 1e3
    }

    /// How an edge is carried between two slices, and by how few lanes.
    pub fn route(&self, from: &Slice, to: &Slice) -> Route {
        let one = |chip: &ChipId| {
            if to.chips.contains(chip) {
                return Route::Local;
            }
            let lanes = to
                .chips
                .iter()
                .filter_map(|other| self.board.socket_link(*chip, *other))
                .map(|link| link.lanes);
            match (from.transport, lanes.max()) {
                (Transport::Host, _) | (_, None) => Route::Host,
                (_, Some(lanes)) => Route::Socket { lanes },
            }
        };
        let routes = from.chips.iter().map(one);
        let worst = |a: Route, b: Route| match (a, b) {
            (Route::Host, _) | (_, Route::Host) => Route::Host,
            (Route::Socket { lanes: a }, Route::Socket { lanes: b }) => Route::Socket { lanes: a.min(b) },
            (Route::Socket { lanes }, Route::Local) | (Route::Local, Route::Socket { lanes }) => {
                Route::Socket { lanes }
            }
            (Route::Local, Route::Local) => Route::Local,
        };
        match from.split {
            // Every chip of a tensor split ends with the whole result: the nearest one sends.
            Split::Tensor => routes.min_by_key(|route| match route {
                Route::Local => 0,
                Route::Socket { .. } => 1,
                Route::Host => 2,
            }),
            Split::Whole | Split::Cameras => routes.reduce(worst),
        }
        .unwrap_or(Route::Host)
    }

    /// Milliseconds of one transfer.
    pub fn transfer_ms(&self, route: Route, from: &Slice, to: &Slice, bytes: u64) -> f64 {
        let published = &self.calibration.published;
        let spec =
            |slice: &Slice| slice.chips.first().and_then(|chip| self.board.chip(*chip)).map(|chip| chip.spec);
        // The receiving operation already waits: only the sending one is launched on the critical path.
        let launch_ms = spec(from).map_or(0.0, |spec| self.calibration.launch_us(self.program, &spec) / 1e3);
        match route {
            Route::Local => 0.0,
            Route::Socket { lanes } => {
                let arch_line_rate = if self.board.arch() == Arch::Wormhole { 12.5 } else { 50.0 };
                let socket = published.socket_gb_per_s[usize::from(lanes > 1)];
                let rate = socket.min(arch_line_rate * f64::from(lanes));
                launch_ms + published.hop_us / 1e3 + bytes as f64 / (rate * 1e6)
            }
            Route::Host => {
                let way = |slice: &Slice| {
                    let pcie = slice.chips.iter().filter_map(|chip| self.board.chip(*chip)?.pcie);
                    let line = pcie.map(|pcie| pcie.gb_per_s()).fold(f64::INFINITY, f64::min);
                    // A chip without PCIe, or the host itself, is not held up by a lane of its own.
                    let line = if line > 0.0 { line } else { f64::INFINITY };
                    bytes as f64 / (published.host_bounce_gb_per_s.min(line) * 1e6)
                };
                published.host_bounce_latency_ms + way(from) + way(to)
            }
        }
    }

    /// An edge with its cost.
    pub fn edge(&self, pipeline: &Pipeline, edge: &Edge) -> EdgeCost {
        let (from, to) = (&pipeline.slices[edge.from], &pipeline.slices[edge.to]);
        let (bytes, times) = self.payload(edge, from, to);
        let route = self.route(from, to);
        EdgeCost {
            from: edge.from,
            to: edge.to,
            payload: edge.payload,
            route,
            bytes,
            times,
            transfer_ms: self.transfer_ms(route, from, to, bytes),
        }
    }

    /// Bytes of one transfer, and transfers per request.
    fn payload(&self, edge: &Edge, from: &Slice, to: &Slice) -> (u64, usize) {
        let sizes = self.sizes;
        let batch = self.request.batch as u64;
        let image_rows = (self.request.cameras * sizes.vision.patches()) as u64;
        // Activations travel as bf16.
        match edge.payload {
            Payload::Hidden if from.stage == StageKind::Vision => {
                let shared = to.camera_chips() as u64;
                (2 * batch * image_rows * sizes.vision.width as u64 / shared, 1)
            }
            Payload::Hidden => (2 * batch * (self.request.prefix_tokens(sizes) * sizes.vlm.width) as u64, 1),
            Payload::ImageTokens => {
                let shared = from.camera_chips() as u64;
                (2 * batch * image_rows * sizes.vlm.width as u64 / shared, 1)
            }
            Payload::Cache => {
                let (layers, times) = if self.layerwise { (1, edge.layers) } else { (edge.layers, 1) };
                (batch * cache_bytes(sizes, layers, &self.request, from.weights), times)
            }
            Payload::Step => (
                2 * batch * (sizes.suffix_tokens().next_multiple_of(32) * sizes.expert.width) as u64,
                self.request.steps,
            ),
        }
    }
}
