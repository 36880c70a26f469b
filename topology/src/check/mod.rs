//! What is wrong with a placement on a board, all at once.
//!
//! Invariants, cited by the tests that hold them: *covered-once* (every layer of every stage is on exactly one slice of a
//! pipeline), *chip-on-board*, *own-chip* (no chip serves two pipelines), *fits-memory*, *fits-l1*, *fabric-carries*
//! (sockets only between chips that share a link), *no-deadlock* (a ring always has a free place), *dtype-on-device*,
//! *device-on-board*, *split-fits*, *edge-holds-two*, *limits-positive*.

mod finding;

use std::collections::{BTreeMap, BTreeSet};

pub use finding::{Finding, Invariant, Severity};

use crate::cost::{Calibration, CostModel, Route};
use crate::deployment::{Batching, Deployment};
use crate::placement::{
    DeviceKind, Payload, Pipeline, Placement, QUEUE_MIN, Residence, Slice, Split, Transport,
};
use crate::workload::{RequestShape, slice_memory};
use crate::{Arch, Board, ChipId, ModelSizes, StageKind, WeightDtype};

/// All findings of a deployment for a policy on a board. Findings that differ only in the copy are given once.
pub fn check_deployment(deployment: &Deployment, board: &Board, sizes: &ModelSizes) -> Vec<Finding> {
    let located = deployment.placement(sizes, board.arch());
    let request = deployment.request(sizes);
    let mut findings = check_placement(&located.placement, board, sizes, &request, deployment.batching);
    let limits = [
        ("batching.max_requests", deployment.batching.max_requests),
        ("batching.max_in_flight", deployment.batching.max_in_flight),
        ("admission.queue", deployment.admission.queue),
        ("request.steps", request.steps),
        ("request.cameras", request.cameras),
    ];
    let mut limit = |name: &str| {
        findings.push(Finding::error(
            Invariant::LimitsPositive,
            None,
            None,
            format!("`{name}` leaves no room for a request"),
            "set it to at least 1".to_owned(),
        ));
    };
    limits.iter().filter(|(_, value)| *value == 0).for_each(|(name, _)| limit(name));
    if deployment.deadlines.default_ms.is_some_and(|ms| ms.is_nan() || ms <= 0.0) {
        limit("deadlines.default_ms");
    }
    for finding in &mut findings {
        if let (Some(pipeline), Some(slice)) = (finding.pipeline, finding.slice) {
            finding.span = located.spans[pipeline][slice].clone();
            let (line, column) = deployment.position(&finding.span);
            (finding.line, finding.column) = (Some(line), Some(column));
        }
    }
    let mut seen = BTreeSet::new();
    findings.retain(|finding| seen.insert((finding.invariant, finding.span.start, finding.message.clone())));
    findings
}

/// All findings of a placement.
pub fn check_placement(
    placement: &Placement,
    board: &Board,
    sizes: &ModelSizes,
    request: &RequestShape,
    batching: Batching,
) -> Vec<Finding> {
    let mut check = Check { board, sizes, request, batching, findings: Vec::new() };
    let mut owner: BTreeMap<ChipId, usize> = BTreeMap::new();
    for (number, pipeline) in placement.pipelines.iter().enumerate() {
        check.coverage(number, pipeline);
        for (place, slice) in pipeline.slices.iter().enumerate() {
            check.slice(number, place, slice);
        }
        let foreign =
            pipeline.chips().into_iter().find(|chip| *owner.entry(*chip).or_insert(number) != number);
        if let Some(chip) = foreign {
            let place = pipeline.slices.iter().position(|slice| slice.chips.contains(&chip));
            check.error(
                Invariant::OwnChip,
                number,
                place,
                format!("chip {chip} already serves pipeline {}", owner[&chip]),
                "give every pipeline chips of its own",
            );
        }
        check.memory(number, pipeline);
        check.edges(number, pipeline);
        check.ring(number, pipeline);
    }
    check.findings
}

struct Check<'a> {
    board: &'a Board,
    sizes: &'a ModelSizes,
    request: &'a RequestShape,
    batching: Batching,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn error(
        &mut self,
        invariant: Invariant,
        pipeline: usize,
        slice: Option<usize>,
        message: String,
        help: impl Into<String>,
    ) {
        self.findings.push(Finding::error(invariant, Some(pipeline), slice, message, help.into()));
    }

    fn coverage(&mut self, number: usize, pipeline: &Pipeline) {
        for stage in StageKind::ALL {
            let layers = self.sizes.layers(stage);
            let mut next = 0;
            let mut last = None;
            for (place, slice) in pipeline.of(stage) {
                let range = slice.layers;
                if range.start() > next {
                    let message = format!("{stage} layers {next}..{} are on no chip", range.start());
                    let help = format!("start this stage at {next}, or add a stage for the gap");
                    self.error(Invariant::CoveredOnce, number, Some(place), message, help);
                }
                if range.start() < next {
                    let end = next.min(range.end());
                    let message = format!("{stage} layers {}..{end} are on two slices", range.start());
                    self.error(
                        Invariant::CoveredOnce,
                        number,
                        Some(place),
                        message,
                        format!("start this stage at {next}"),
                    );
                }
                if range.end() > layers {
                    let message = format!("{stage} layers {range} of a policy that has {layers}");
                    self.error(
                        Invariant::CoveredOnce,
                        number,
                        Some(place),
                        message,
                        format!("end this stage at {layers}"),
                    );
                }
                next = next.max(range.end());
                last = Some(place);
            }
            if next < layers {
                let message = format!("{stage} layers {next}..{layers} are on no chip");
                let place = last.or_else(|| (!pipeline.slices.is_empty()).then_some(0));
                let help = format!("add a stage of kind {stage} with layers \"{next}..{layers}\"");
                self.error(Invariant::CoveredOnce, number, place, message, help);
            }
        }
    }

    fn slice(&mut self, number: usize, place: usize, slice: &Slice) {
        let place = Some(place);
        let chips = self.board.chips();
        if let Some(chip) = slice.chips.iter().find(|chip| self.board.chip(**chip).is_none()) {
            let last = chips.last().map_or(ChipId(0), |chip| chip.id);
            let message = format!("chip {chip} is not on {}", self.board.name);
            self.error(Invariant::ChipOnBoard, number, place, message, format!("its chips end at {last}"));
        }
        let distinct: BTreeSet<&ChipId> = slice.chips.iter().collect();
        if distinct.len() < slice.chips.len() {
            let message = "a chip stands twice in this slice".to_owned();
            self.error(Invariant::OwnChip, number, place, message, "name every chip once");
        }
        if slice.queue < QUEUE_MIN {
            let message = format!("a queue of {} makes sender and receiver take turns", slice.queue);
            self.error(
                Invariant::EdgeHoldsTwo,
                number,
                place,
                message,
                format!("queue = {QUEUE_MIN} or more"),
            );
        }
        self.device(number, place, slice);
        self.split(number, place, slice);
    }

    fn device(&mut self, number: usize, place: Option<usize>, slice: &Slice) {
        let allowed: &[WeightDtype] = match slice.device {
            DeviceKind::Host => &[WeightDtype::Bf16, WeightDtype::F32],
            DeviceKind::Ttnn => &[WeightDtype::Bf16, WeightDtype::Bfp8B],
            DeviceKind::Emulated => &[WeightDtype::Bf16, WeightDtype::Bfp8B, WeightDtype::F32],
        };
        if !allowed.contains(&slice.weights) {
            let names = allowed.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(" or ");
            let device = device_name(slice.device);
            let message = format!("device `{device}` does not compute with {} weights", slice.weights);
            self.error(Invariant::DtypeOnDevice, number, place, message, format!("use {names}"));
        }
        if slice.device == DeviceKind::Ttnn && self.board.arch() == Arch::Host {
            let message = "there is no Tenstorrent chip on board `host`".to_owned();
            self.error(
                Invariant::DeviceOnBoard,
                number,
                place,
                message,
                "use device = \"host\", or name a board",
            );
        }
        if slice.residence == Residence::L1
            && (slice.device == DeviceKind::Host || self.board.arch() == Arch::Host)
        {
            let message = "the host has no L1 to place weights in".to_owned();
            self.error(Invariant::FitsL1, number, place, message, "leave out `resident`");
        }
        if slice.device == DeviceKind::Host && slice.transport == Transport::Socket {
            let message =
                "slices on the host hand over through memory, not through fabric sockets".to_owned();
            self.error(Invariant::FabricCarries, number, place, message, "leave out `transport`");
        }
    }

    fn split(&mut self, number: usize, place: Option<usize>, slice: &Slice) {
        let count = slice.chips.len();
        let mut refuse = |message: String, help: &str| {
            self.findings.push(Finding::error(
                Invariant::SplitFits,
                Some(number),
                place,
                message,
                help.to_owned(),
            ));
        };
        match slice.split {
            Split::Whole if count > 1 => {
                refuse(
                    format!("{count} chips for one slice, and nothing says how they share it"),
                    "give each chip its own stage with a range of layers, or set split = \"cameras\" or \"tensor\"",
                );
            }
            Split::Cameras if slice.stage != StageKind::Vision => {
                refuse(
                    format!("cameras cannot be dealt out in the {} stage", slice.stage),
                    "split = \"cameras\" is for vision",
                );
            }
            Split::Tensor if slice.stage != StageKind::Prefix => {
                refuse(
                    format!("the {} stage cannot be tensor-split", slice.stage),
                    "split = \"tensor\" is for the prefix",
                );
            }
            Split::Tensor if slice.device == DeviceKind::Host => {
                refuse("the host device does not tensor-split".to_owned(), "use ranges of layers");
            }
            Split::Tensor if !self.sizes.vlm.mlp.is_multiple_of(32 * count) => {
                refuse(
                    format!(
                        "an MLP of {} columns does not divide into tiles over {count} chips",
                        self.sizes.vlm.mlp
                    ),
                    "use 2, 4 or 8 chips",
                );
            }
            Split::Tensor if !self.board.is_line(&slice.chips) => {
                self.error(
                    Invariant::FabricCarries,
                    number,
                    place,
                    "the chips of a tensor split are not neighbours in one row or column, in order"
                        .to_owned(),
                    "all-reduces of a 1-D fabric need adjacent, collinear chips",
                );
            }
            _ => {}
        }
    }

    fn memory(&mut self, number: usize, pipeline: &Pipeline) {
        // Slices on the host of a Tenstorrent board use the host's memory, whose size no descriptor gives.
        let on_chip = |slice: &&Slice| self.board.arch() == Arch::Host || slice.device != DeviceKind::Host;
        for id in pipeline.chips() {
            let Some(chip) = self.board.chip(id) else { continue };
            let here = || pipeline.slices.iter().filter(on_chip).filter(|slice| slice.chips.contains(&id));
            let memory =
                |slice: &Slice| slice_memory(self.sizes, slice, self.request, self.batching.max_in_flight);
            let needed: u64 = here().map(|slice| memory(slice).total_bytes()).sum();
            let resident: u64 = here()
                .filter(|slice| slice.residence == Residence::L1)
                .map(|slice| memory(slice).weight_bytes)
                .sum();
            let expert_only = here().all(|slice| slice.stage == StageKind::Expert);
            let l1 = chip.spec.l1_for_weights_bytes(expert_only);
            let dram = chip.spec.dram_bytes;
            let place = pipeline.slices.iter().position(|slice| slice.chips.contains(&id));
            if needed > dram {
                let message = format!("chip {id} needs {} of memory and has {}", gb(needed), gb(dram));
                let help = "use bfp8_b weights, fewer layers on this chip, smaller batches and queues, or fewer requests in flight";
                self.error(Invariant::FitsMemory, number, place, message, help);
            }
            if resident > l1 && l1 > 0 {
                let message = format!(
                    "chip {id} is to keep {} in L1 and has {} beside the buffers of its matmuls",
                    gb(resident),
                    gb(l1)
                );
                self.error(
                    Invariant::FitsL1,
                    number,
                    place,
                    message,
                    "fewer layers on this chip, or resident = \"dram\"",
                );
            }
        }
    }

    fn edges(&mut self, number: usize, pipeline: &Pipeline) {
        let model = CostModel::new(self.board, self.sizes, *self.request, Calibration::shipped());
        for edge in pipeline.edges() {
            let (from, to) = (&pipeline.slices[edge.from], &pipeline.slices[edge.to]);
            let known = |slice: &Slice| slice.chips.iter().all(|chip| self.board.chip(*chip).is_some());
            let both_on_host = from.device == DeviceKind::Host && to.device == DeviceKind::Host;
            if both_on_host || !known(from) || !known(to) || self.board.arch() == Arch::Host {
                continue;
            }
            let cost = model.edge(pipeline, &edge);
            if cost.route != Route::Host || from.transport == Transport::Host {
                continue;
            }
            let what = payload_name(edge.payload);
            let place = format!("{what} from {} {} to {} {}", from.stage, from.layers, to.stage, to.layers);
            if from.transport == Transport::Socket {
                let message = format!(
                    "no link carries {place}: chips {} and {} are not neighbours",
                    chips(from),
                    chips(to)
                );
                self.error(
                    Invariant::FabricCarries,
                    number,
                    Some(edge.from),
                    message,
                    "put them on chips that share a link, or set transport = \"auto\" or \"host\"",
                );
            } else {
                let total_ms = cost.transfer_ms * cost.times as f64;
                let message = format!("{place} goes over the host, {total_ms:.1} ms a request");
                let help = "put the two on chips that share a link, or set transport = \"host\" to say that it is meant";
                self.error(Invariant::FabricCarries, number, Some(edge.from), message, help);
                if let Some(finding) = self.findings.last_mut() {
                    finding.severity = Severity::Warning;
                }
            }
        }
    }

    fn ring(&mut self, number: usize, pipeline: &Pipeline) {
        let ring: Vec<(usize, &Slice)> = pipeline.of(StageKind::Expert).collect();
        if ring.len() < 2 {
            return;
        }
        let places: usize = ring.iter().map(|(_, slice)| slice.queue).sum();
        if self.batching.max_in_flight >= places {
            let message = format!(
                "{} requests may circulate in a ring with {places} places: when all are taken nobody can move",
                self.batching.max_in_flight
            );
            let help = format!("batching.max_in_flight at most {}, or longer queues", places - 1);
            self.error(Invariant::NoDeadlock, number, Some(ring[0].0), message, help);
        }
    }
}

fn device_name(device: DeviceKind) -> &'static str {
    match device {
        DeviceKind::Host => "host",
        DeviceKind::Ttnn => "ttnn",
        DeviceKind::Emulated => "emulated",
    }
}

fn payload_name(payload: Payload) -> &'static str {
    match payload {
        Payload::Hidden => "hidden state",
        Payload::ImageTokens => "image tokens",
        Payload::Cache => "cache",
        Payload::Step => "expert state of every step",
    }
}

fn chips(slice: &Slice) -> String {
    slice.chips.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
}

fn gb(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
