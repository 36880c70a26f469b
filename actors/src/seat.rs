//! Where a slice runs: its chips, and how long they take.
//!
//! On the host a computation takes as long as it takes. On an emulated chip the cost model says how long, and the chip
//! is taken for that time; a transfer takes the sender's chips, and the receiver's as soon as they are free.

use std::sync::Arc;
use std::time::Duration;

use tensact_runtime::device::SliceError;
use tensact_topology::{
    Board, Calibration, ChipId, CostModel, Edge, LayerRange, ModelSizes, Payload, RequestShape, Split,
    StageKind,
};

use crate::chip::{Chips, Rank, Turn};
use crate::clock::{Clock, Moment};
use crate::home::Home;
use crate::memo::Memo;
use crate::parcel::{Content, Load, Parcel, Way, Wire};
use crate::recorder::{Place, Recorder};
use crate::simulate::faults::{FaultKind, SliceFaults};
use crate::telemetry::{Activity, Doing, Member, Transport};
use crate::ticket::Ticket;

/// Why a stage failed. Its supervisor starts it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage} layers {layers} on chip {chip} of pipeline {pipeline}: {cause}")]
pub(crate) struct StageFault {
    pub(crate) stage: StageKind,
    pub(crate) layers: LayerRange,
    pub(crate) chip: ChipId,
    pub(crate) pipeline: usize,
    pub(crate) cause: String,
}

/// A slice's place on its chips.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) place: Place,
    pub(crate) stage: StageKind,
    pub(crate) layers: LayerRange,
    pub(crate) chips: Chips,
    pub(crate) clock: Clock,
    pub(crate) costs: Option<Costs>,
    pub(crate) faults: Option<Arc<SliceFaults>>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) home: Arc<Home>,
    /// How much longer than they should emulated waits have lasted.
    pub(crate) lag: Duration,
}

/// Timers have a grain, and wake late on a busy machine; more than this is not made up for.
const LAG_MAX: Duration = Duration::from_millis(5);

/// The share of a pass that is run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// All layers of the slice.
    Pass,
    /// One of them.
    Layer {
        /// Which.
        layer: usize,
        /// Whether it is the last one.
        last: bool,
    },
}

/// Requests that a slice computes for at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) tickets: &'a [Arc<Ticket>],
    /// Most images of a request that the pass sees.
    pub(crate) cameras: usize,
    /// Denoising steps of the requests, where the expert works.
    pub(crate) steps: &'a [usize],
}

impl Batch<'_> {
    /// The same for those who look on.
    fn members(&self) -> Vec<Member> {
        let steps = self.steps.iter().copied().map(Some).chain(std::iter::repeat(None));
        self.tickets.iter().zip(steps).map(|(ticket, step)| ticket.member(step)).collect()
    }
}

impl Seat {
    pub(crate) async fn take(&self, rank: Rank) -> Turn {
        self.chips.take(rank).await
    }

    /// Whether a ticket may go on into this slice.
    pub(crate) fn admits(&self, ticket: &Ticket) -> bool {
        let boundary = match self.stage {
            StageKind::Vision => "the vision tower",
            StageKind::Prefix => "the prefix",
            StageKind::Expert => "denoising",
        };
        !self.home.is_closed() && ticket.goes_on(self.clock.now(), boundary)
    }

    /// Runs a computation for some requests on the chips, which are taken.
    pub(crate) async fn run<T>(
        &mut self,
        _turn: &Turn,
        share: Share,
        batch: Batch<'_>,
        compute: impl FnOnce() -> Result<T, SliceError>,
    ) -> Result<T, StageFault> {
        let slowdown = self.suffer(batch).await?;
        let began = self.recorder.begin(self.place, share, batch.tickets);
        let cameras = batch.cameras;
        let (doing, layers) = match share {
            Share::Pass => (Doing::Pass { cameras }, self.layers),
            Share::Layer { layer, last } => (Doing::Layer { cameras, last }, LayerRange::one(layer)),
        };
        let activity = self.recorder.keeps_journal().then(|| {
            let activity = self.activity(doing, began, began, batch.members());
            Activity { layers, ..activity }
        });
        if let Some(activity) = &activity {
            self.recorder.take_down(|journal| journal.began(activity.clone()));
        }
        let result = compute();
        if let (Ok(_), Some(costs)) = (&result, &mut self.costs) {
            let pass = costs.pass(batch.tickets, batch.cameras);
            let shares = if share == Share::Pass { 1 } else { self.layers.len() as u32 };
            // What was computed here is part of the chip's time.
            let spent = self.clock.now() - began;
            self.occupy((pass / shares).mul_f64(slowdown).saturating_sub(spent)).await;
        }
        let ended = match &result {
            Ok(_) => self.recorder.end(self.place, began, &self.chips, share, batch.tickets),
            // It took its chips for as long, though nothing came of it.
            Err(_) => self.clock.now(),
        };
        if let Some(activity) = activity {
            self.recorder.acted(|| Activity { ended, ..activity });
        }
        result.map_err(|error| self.fault(error.to_string()))
    }

    /// Something that this slice's chips did.
    fn activity(&self, doing: Doing, began: Moment, ended: Moment, members: Vec<Member>) -> Activity {
        Activity {
            pipeline: self.place.pipeline,
            slice: self.place.slice,
            stage: self.stage,
            layers: self.layers,
            chips: Arc::clone(self.chips.ids()),
            doing,
            began,
            ended,
            members,
        }
    }

    /// Takes down that a request was held up here without a chip.
    pub(crate) fn held_up(&self, ticket: &Ticket, doing: Doing, began: Moment, ended: Moment) {
        if began < ended {
            let chips: Arc<[ChipId]> = Arc::new([]);
            let held = || Activity { chips, ..self.activity(doing, began, ended, vec![ticket.member(None)]) };
            self.recorder.acted(held);
        }
    }

    /// What the simulation has in store for the next computation: how much longer it takes.
    async fn suffer(&self, batch: Batch<'_>) -> Result<f64, StageFault> {
        let Some(faults) = &self.faults else { return Ok(1.0) };
        while let Some(kind) = faults.due(self.clock.now()) {
            match kind {
                // Unwinds like a panic, without the panic hook's message.
                FaultKind::Crash => std::panic::resume_unwind(Box::new("injected crash")),
                FaultKind::Error => return Err(self.fault("injected device error".into())),
                FaultKind::Stall(duration) => {
                    let began = self.clock.now();
                    let stall = |ended| self.activity(Doing::Stall, began, ended, batch.members());
                    self.recorder.take_down(|journal| journal.began(stall(began)));
                    self.clock.wait(duration).await;
                    self.recorder.acted(|| stall(self.clock.now()));
                }
                FaultKind::Slow { .. } | FaultKind::LinkDown(_) => {}
            }
        }
        Ok(faults.slowdown(self.clock.now()))
    }

    /// Sends over an edge, and takes the chips for as long as the transfer lasts. While the edge is full the chips are
    /// free for others.
    pub(crate) async fn send<T>(
        &mut self,
        turn: &mut Option<Turn>,
        rank: Rank,
        way: &mut Way<Parcel<T>>,
        images: usize,
        content: T,
    ) -> Result<(), StageFault>
    where
        T: Content,
    {
        if let Some(faults) = &self.faults
            && faults.link_down(self.clock.now())
        {
            return Err(self.fault("the link is down".into()));
        }
        let mut load = way.load(&content, images);
        // Chips that share a slice each send what they have computed.
        if let Some(from) = self.chips.ids().first() {
            load.wire.from = *from;
        }
        if load.wire.from == load.wire.to {
            load.wire.transport = Transport::Local;
        }
        let member = content.ticket().member(content.step());
        if let Err(parcel) = way.outbox.try_send(Parcel { load, content }) {
            *turn = None;
            let began = self.clock.now();
            let ticket = Arc::clone(parcel.content.ticket());
            tokio::select! {
                biased;
                () = way.outbox.send(parcel) => {}
                // Nobody takes it any more.
                () = self.home.closing() => {}
            }
            self.held_up(&ticket, Doing::Blocked { to: load.wire.to }, began, self.clock.now());
        }
        if turn.is_none() && !load.takes.is_zero() {
            *turn = Some(self.take(rank).await);
        }
        let Load { wire: Wire { from, to, transport }, bytes, .. } = load;
        if transport != Transport::Local {
            self.recorder.sent(from, to, transport, bytes);
            self.transfer(load, Doing::Send { to, bytes, transport }, member).await;
        }
        Ok(())
    }

    /// Takes what has arrived: the chips, which are taken, are busy with it for a while.
    pub(crate) async fn receive<T: Content>(&mut self, _turn: &Turn, parcel: Parcel<T>) -> T {
        let Load { wire: Wire { from, transport, .. }, bytes, takes } = parcel.load;
        if !takes.is_zero() {
            let member = parcel.content.ticket().member(parcel.content.step());
            self.transfer(parcel.load, Doing::Receive { from, bytes, transport }, member).await;
        }
        parcel.content
    }

    /// Lets emulated time pass; what one wait lasted too long, the next ones last less.
    async fn occupy(&mut self, takes: Duration) {
        let began = self.clock.now();
        let owed = self.lag.min(takes);
        self.clock.wait(takes - owed).await;
        self.lag = (self.lag + (self.clock.now() - began)).saturating_sub(takes).min(LAG_MAX);
    }

    async fn transfer(&mut self, load: Load, doing: Doing, member: Member) {
        let began = self.clock.now();
        if !load.takes.is_zero() {
            self.occupy(load.takes).await;
        }
        let ended = self.clock.now();
        self.recorder.transferred(&self.chips, ended - began);
        self.recorder.acted(|| self.activity(doing, began, ended, vec![member]));
    }

    pub(crate) fn fault(&self, cause: String) -> StageFault {
        StageFault {
            stage: self.stage,
            layers: self.layers,
            chip: self.chips.ids().first().copied().unwrap_or(ChipId(0)),
            pipeline: self.place.pipeline,
            cause,
        }
    }
}

/// Everything a cost depends on but the request.
#[derive(Clone)]
pub(crate) struct CostBase {
    pub(crate) board: Arc<Board>,
    pub(crate) sizes: ModelSizes,
    pub(crate) pipeline: Arc<tensact_topology::Pipeline>,
}

impl CostBase {
    pub(crate) fn model(&self, request: RequestShape) -> CostModel<'_> {
        CostModel::new(&self.board, &self.sizes, request, Calibration::shipped())
    }
}

/// How long passes of a slice take on an emulated chip.
#[derive(Clone)]
pub(crate) struct Costs {
    base: CostBase,
    /// As one of its chips runs it.
    slice: tensact_topology::Slice,
    known: Memo<(usize, usize, usize), Duration>,
}

impl Costs {
    pub(crate) fn new(base: CostBase, slice: usize) -> Self {
        let mut slice = base.pipeline.slices[slice].clone();
        if slice.split == Split::Cameras {
            // A chip runs the images it is given, by itself.
            slice.split = Split::Whole;
            slice.chips.truncate(1);
        }
        Self { base, slice, known: Memo::default() }
    }

    /// One pass over a batch; `cameras` is the number of images of a request that this pass sees.
    fn pass(&mut self, batch: &[Arc<Ticket>], cameras: usize) -> Duration {
        let tokens = batch.iter().map(|ticket| ticket.sample.input.tokens.len()).max().unwrap_or(0);
        let Self { base, slice, known } = self;
        known.get_or((cameras, tokens, batch.len()), || {
            let request = RequestShape { cameras, prompt_tokens: tokens, steps: 1, batch: batch.len() };
            let cost = base.model(request).slice(slice);
            Duration::from_secs_f64(cost.map_or(0.0, |cost| cost.pass.total_ms()) / 1e3)
        })
    }
}

/// How long transfers over an edge take.
#[derive(Clone)]
pub(crate) struct EdgeCosts {
    base: CostBase,
    edge: Edge,
    known: Memo<(usize, usize), (Duration, u64)>,
}

impl EdgeCosts {
    pub(crate) fn new(base: CostBase, edge: Edge) -> Self {
        Self { base, edge, known: Memo::default() }
    }

    /// Time and bytes of one transfer for a request; of `images` images, where the edge carries those.
    pub(crate) fn transfer(&mut self, ticket: &Ticket, images: usize) -> (Duration, u64) {
        let tokens = ticket.sample.input.tokens.len();
        let Self { base, edge, known } = self;
        known.get_or((images, tokens), || {
            let [from, to] = [edge.from, edge.to].map(|place| &base.pipeline.slices[place]);
            // The model deals the cameras out to the chips of one end: so many make `images` on one chip.
            let dealt = if edge.payload == Payload::ImageTokens { from } else { to };
            let cameras = images * dealt.camera_chips();
            let request = RequestShape { cameras, prompt_tokens: tokens, steps: 1, batch: 1 };
            let cost = base.model(request).edge(&base.pipeline, edge);
            (Duration::from_secs_f64(cost.transfer_ms / 1e3), cost.bytes)
        })
    }
}
