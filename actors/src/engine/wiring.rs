//! One pipeline of a placement, wired up: a channel for each edge, an actor for each slice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kameo::actor::{ActorRef, Spawn};
use kameo::mailbox;
use kameo::supervision::RestartPolicy;
use tensact_topology::{
    Arch, Calibration, ChipId, DeviceKind, Payload, Pipeline, RequestShape, Split, StageKind, Variant,
};

use super::Blueprint;
use crate::chip::{Chip, Chips};
use crate::devices::SliceDevice;
use crate::edge::{Outbox, Port, edge};
use crate::home::Home;
use crate::parcel::{Parcel, Way, Wire};
use crate::recorder::{Place, Recorder};
use crate::scheduler::{Entry, Scheduler, Sweeper};
use crate::seat::{CostBase, Costs, EdgeCosts, Seat};
use crate::stage::{
    CacheLayer, Denoise, DenoiseArgs, Images, Prefix, PrefixArgs, Prefixed, Stage, StepWork, Sweep, Vision,
    VisionArgs, VisionNext, Work,
};
use crate::telemetry::Transport;

/// One pipeline while it is wired up.
pub(super) struct Wiring<'a> {
    blueprint: &'a Blueprint,
    number: usize,
    costs: CostBase,
    chips: &'a BTreeMap<ChipId, Arc<Chip>>,
    recorder: &'a Arc<Recorder>,
    home: &'a Arc<Home>,
    /// Both ends of every edge, by the places of its slices.
    images: BTreeMap<usize, Ends<Images>>,
    prefixed: BTreeMap<usize, Ends<Prefixed>>,
    caches: BTreeMap<(usize, usize), Ends<CacheLayer>>,
    steps: BTreeMap<usize, Ends<StepWork>>,
}

struct Ends<T> {
    way: Way<Parcel<T>>,
    port: Port<Parcel<T>>,
}

impl<'a> Wiring<'a> {
    pub(super) fn new(
        blueprint: &'a Blueprint,
        number: usize,
        pipeline: Pipeline,
        chips: &'a BTreeMap<ChipId, Arc<Chip>>,
        recorder: &'a Arc<Recorder>,
        home: &'a Arc<Home>,
    ) -> Self {
        let pipeline = Arc::new(pipeline);
        let costs = CostBase { board: Arc::clone(&blueprint.board), sizes: blueprint.sizes, pipeline };
        let mut wiring = Self {
            blueprint,
            number,
            costs,
            chips,
            recorder,
            home,
            images: BTreeMap::new(),
            prefixed: BTreeMap::new(),
            caches: BTreeMap::new(),
            steps: BTreeMap::new(),
        };
        wiring.connect();
        wiring
    }

    /// Makes one channel per edge, each as long as the queue of its receiver.
    fn connect(&mut self) {
        let pipeline = Arc::clone(&self.costs.pipeline);
        let requests = self.blueprint.limits.max_requests;
        for edge in pipeline.edges() {
            let (from, to) = (&pipeline.slices[edge.from], &pipeline.slices[edge.to]);
            // As many messages as a request may come in: one for each chip that cameras are dealt out to.
            let groups = from.camera_chips().max(to.camera_chips());
            match edge.payload {
                Payload::Hidden if from.stage == StageKind::Vision => {
                    let ends = self.ends(edge, to.queue * requests * groups);
                    self.images.insert(edge.to, ends);
                }
                Payload::Hidden | Payload::ImageTokens => {
                    let ends = self.ends(edge, to.queue * requests * groups);
                    self.prefixed.insert(edge.to, ends);
                }
                Payload::Cache => {
                    let ends = self.ends(edge, to.queue * requests * edge.layers);
                    self.caches.insert((edge.from, edge.to), ends);
                }
                Payload::Step => {
                    let ends = self.ends(edge, to.queue);
                    self.steps.insert(edge.to, ends);
                }
            }
        }
    }

    fn ends<T>(&self, wire: tensact_topology::Edge, capacity: usize) -> Ends<T> {
        let emulated = |place: usize| self.costs.pipeline.slices[place].device == DeviceKind::Emulated;
        let costs =
            (emulated(wire.from) && emulated(wire.to)).then(|| EdgeCosts::new(self.costs.clone(), wire));
        let wire = self.wire(wire.from, wire.to, costs.is_some());
        let (outbox, port): (Outbox<_>, _) = edge(capacity);
        Ends { way: Way { outbox, wire, costs }, port }
    }

    /// What an edge goes over. Devices that are no chips hand tensors over on the host.
    fn wire(&self, from: usize, to: usize, emulated: bool) -> Wire {
        let by_socket = self.blueprint.devices.by_socket(self.number, from, to);
        let [from, to] = [from, to].map(|place| &self.costs.pipeline.slices[place]);
        let route = self.costs.model(RequestShape::of(&self.costs.sizes)).route(from, to);
        let transport = match Transport::from(route) {
            Transport::Socket if !emulated && !by_socket => Transport::Host,
            // Some of the chips that share the next slice have it, others fetch it.
            Transport::Local if by_socket => Transport::Socket,
            transport => transport,
        };
        Wire { from: from.chips[0], to: to.chips[0], transport }
    }

    /// Starts the actors of all slices.
    pub(super) async fn spawn(mut self, scheduler: &ActorRef<Scheduler>) -> (Entry, Sweeper) {
        let pipeline = Arc::clone(&self.costs.pipeline);
        let chips = pipeline.slices[0].camera_chips();
        let (outbox, port) = edge(self.blueprint.limits.max_in_flight * chips);
        let first = pipeline.slices[0].chips[0];
        let wire = Wire { from: first, to: first, transport: Transport::Local };
        self.images.insert(0, Ends { way: Way { outbox: outbox.clone(), wire, costs: None }, port });
        let mut sweeps: Vec<Box<dyn Fn() + Send + Sync>> = Vec::new();
        for place in 0..pipeline.slices.len() {
            match pipeline.slices[place].stage {
                StageKind::Vision => {
                    for args in self.vision(place) {
                        sweeps.push(self.start(scheduler, move || Vision::new(args.clone())).await);
                    }
                }
                StageKind::Prefix => {
                    let args = self.prefix(place);
                    sweeps.push(self.start(scheduler, move || Prefix::new(args.clone())).await);
                }
                StageKind::Expert => {
                    let args = self.denoise(place);
                    sweeps.push(self.start(scheduler, move || Denoise::new(args.clone())).await);
                }
            }
        }
        let emulated = pipeline.slices.iter().all(|slice| slice.device == DeviceKind::Emulated);
        let io = emulated && self.blueprint.board.arch() != Arch::Host;
        let io_ms = if io { Calibration::shipped().request_io_ms() } else { 0.0 };
        let entry = Entry {
            outbox,
            wire,
            chips,
            costs: self.costs.clone(),
            trusted: emulated && !self.blueprint.on_threads,
            upload: Duration::from_secs_f64(io_ms / 1e3),
            ring: pipeline.of(StageKind::Expert).count() > 1,
        };
        (entry, Box::new(move || sweeps.iter().for_each(|sweep| sweep())))
    }

    /// Starts the actor of a slice under the scheduler.
    async fn start<W: Work>(
        &self,
        scheduler: &ActorRef<Scheduler>,
        work: impl Fn() -> W + Send + Sync + 'static,
    ) -> Box<dyn Fn() + Send + Sync> {
        let actor = Stage::<W>::supervise_with(scheduler, work)
            .restart_policy(RestartPolicy::Transient)
            // How often is too often is decided by the scheduler, in the pipeline's own time.
            .restart_limit(u32::MAX, Duration::MAX);
        let actor = if self.blueprint.on_threads {
            actor.spawn_in_thread_with_mailbox(mailbox::unbounded()).await
        } else {
            actor.spawn_with_mailbox(mailbox::unbounded()).await
        };
        Box::new(move || drop(actor.tell(Sweep).try_send()))
    }

    fn seat(&self, place: usize, chips: &[ChipId]) -> Seat {
        let slice = &self.costs.pipeline.slices[place];
        Seat {
            place: Place { pipeline: self.number, slice: place },
            stage: slice.stage,
            layers: slice.layers,
            chips: Chips::new(chips.iter().filter_map(|chip| self.chips.get(chip).cloned()).collect()),
            clock: self.blueprint.clock,
            costs: (slice.device == DeviceKind::Emulated).then(|| Costs::new(self.costs.clone(), place)),
            faults: self.blueprint.faults.get(&(self.number, place)).cloned(),
            recorder: Arc::clone(self.recorder),
            home: Arc::clone(self.home),
            lag: Duration::ZERO,
        }
    }

    fn vision(&self, place: usize) -> Vec<VisionArgs> {
        let pipeline = &self.costs.pipeline;
        let slice = &pipeline.slices[place];
        let Some(Ends { port, .. }) = self.images.get(&place) else { return Vec::new() };
        let next = pipeline.slices.get(place + 1);
        let next = match (next, self.images.get(&(place + 1)), self.prefixed.get(&(place + 1))) {
            (Some(next), Some(ends), _) => VisionNext::Vision(ends.way.clone(), next.camera_chips()),
            (_, _, Some(ends)) => VisionNext::Prefix(ends.way.clone()),
            _ => return Vec::new(),
        };
        let shares = slice.split == Split::Cameras;
        let seats = if shares { slice.chips.chunks(1).collect() } else { vec![&slice.chips[..]] };
        let args = |chips: &[ChipId]| {
            let SliceDevice::Vision(device) = self.blueprint.devices.of(slice, chips[0]) else {
                return None;
            };
            Some(VisionArgs {
                seat: self.seat(place, chips),
                device,
                port: port.clone(),
                next: next.clone(),
                max_requests: self.blueprint.limits.max_requests,
                shares,
            })
        };
        seats.into_iter().filter_map(args).collect()
    }

    fn prefix(&self, place: usize) -> PrefixArgs {
        let pipeline = &self.costs.pipeline;
        let slice = &pipeline.slices[place];
        let SliceDevice::Prefix(device) = self.blueprint.devices.of(slice, slice.chips[0]) else {
            unreachable!("devices hold every slice of their placement as its own stage")
        };
        let caches = self.caches.iter().filter(|((from, _), _)| *from == place);
        PrefixArgs {
            seat: self.seat(place, &slice.chips),
            device,
            port: self.prefixed[&place].port.clone(),
            caches: caches.map(|((_, to), ends)| (pipeline.slices[*to].layers, ends.way.clone())).collect(),
            next: pipeline
                .slices
                .get(place + 1)
                .filter(|next| next.stage == StageKind::Prefix)
                .map(|_| self.prefixed[&(place + 1)].way.clone()),
            max_requests: self.blueprint.limits.max_requests,
        }
    }

    fn denoise(&self, place: usize) -> DenoiseArgs {
        let pipeline = &self.costs.pipeline;
        let slice = &pipeline.slices[place];
        let SliceDevice::Expert(device) = self.blueprint.devices.of(slice, slice.chips[0]) else {
            unreachable!("devices hold every slice of their placement as its own stage")
        };
        let ring: Vec<usize> = pipeline.of(StageKind::Expert).map(|(place, _)| place).collect();
        let last = ring.last() == Some(&place);
        let behind = if last { ring[0] } else { place + 1 };
        let caches = self.caches.iter().filter(|((_, to), _)| *to == place);
        DenoiseArgs {
            seat: self.seat(place, &slice.chips),
            device,
            caches: caches.map(|(_, ends)| ends.port.clone()).collect(),
            steps: self.steps.get(&place).map(|ends| ends.port.clone()),
            next: self.steps.get(&behind).map(|ends| ends.way.clone()),
            last,
            has_state: self.blueprint.sizes.variant == Variant::Pi0,
            max_requests: self.blueprint.limits.max_requests,
            follows: self.blueprint.follows,
        }
    }
}
