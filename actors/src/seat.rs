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
use crate::clock::Clock;
use crate::edge::Outbox;
use crate::home::Home;
use crate::memo::Memo;
use crate::recorder::{Place, Recorder};
use crate::simulate::faults::{FaultKind, SliceFaults};
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
        /// The last one.
        last: bool,
    },
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
        batch: &[Arc<Ticket>],
        cameras: usize,
        compute: impl FnOnce() -> Result<T, SliceError>,
    ) -> Result<T, StageFault> {
        let slowdown = self.suffer().await?;
        let began = self.recorder.begin(self.place, share, batch);
        let result = compute().map_err(|error| self.fault(error.to_string()))?;
        if let Some(costs) = &mut self.costs {
            let pass = costs.pass(batch, cameras);
            let shares = if share == Share::Pass { 1 } else { self.layers.len() as u32 };
            // What was computed here is part of the chip's time.
            let spent = self.clock.now() - began;
            self.occupy((pass / shares).mul_f64(slowdown).saturating_sub(spent)).await;
        }
        self.recorder.end(self.place, began, self.chips.ids(), share, batch);
        Ok(result)
    }

    /// What the simulation has in store for the next computation: how much longer it takes.
    async fn suffer(&self) -> Result<f64, StageFault> {
        let Some(faults) = &self.faults else { return Ok(1.0) };
        while let Some(kind) = faults.due(self.clock.now()) {
            match kind {
                // Unwinds like a panic, without the panic hook's message.
                FaultKind::Crash => std::panic::resume_unwind(Box::new("injected crash")),
                FaultKind::Error => return Err(self.fault("injected device error".into())),
                FaultKind::Stall(duration) => self.clock.wait(duration).await,
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
        let takes = way.takes(content.ticket(), images);
        if let Err(parcel) = way.outbox.try_send(Parcel { takes, content }) {
            *turn = None;
            tokio::select! {
                biased;
                () = way.outbox.send(parcel) => {}
                // Nobody takes it any more.
                () = self.home.closing() => {}
            }
        }
        if !takes.is_zero() {
            if turn.is_none() {
                *turn = Some(self.take(rank).await);
            }
            self.transfer(takes).await;
        }
        Ok(())
    }

    /// Takes what has arrived: the chips, which are taken, are busy with it for a while.
    pub(crate) async fn receive<T>(&mut self, _turn: &Turn, parcel: Parcel<T>) -> T {
        if !parcel.takes.is_zero() {
            self.transfer(parcel.takes).await;
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

    async fn transfer(&mut self, takes: Duration) {
        let began = self.clock.now();
        self.occupy(takes).await;
        self.recorder.transferred(self.chips.ids(), self.clock.now() - began);
    }

    pub(crate) fn fault(&self, cause: String) -> StageFault {
        StageFault {
            stage: self.stage,
            layers: self.layers,
            chip: self.chips.ids().next().unwrap_or(ChipId(0)),
            pipeline: self.place.pipeline,
            cause,
        }
    }
}

/// What travels over an edge, and for how long.
pub(crate) struct Parcel<T> {
    pub(crate) content: T,
    pub(crate) takes: Duration,
}

/// What an edge carries belongs to a ticket.
pub(crate) trait Content {
    fn ticket(&self) -> &Ticket;
}

/// An edge out of a slice, and what a transfer over it takes on an emulated board.
pub(crate) struct Way<T> {
    pub(crate) outbox: Outbox<T>,
    pub(crate) costs: Option<EdgeCosts>,
}

impl<T> Clone for Way<T> {
    fn clone(&self) -> Self {
        Self { outbox: self.outbox.clone(), costs: self.costs.clone() }
    }
}

impl<T> Way<T> {
    fn takes(&mut self, ticket: &Ticket, images: usize) -> Duration {
        self.costs.as_mut().map_or(Duration::ZERO, |costs| costs.transfer(ticket, images))
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
    known: Memo<(usize, usize), Duration>,
}

impl EdgeCosts {
    pub(crate) fn new(base: CostBase, edge: Edge) -> Self {
        Self { base, edge, known: Memo::default() }
    }

    /// One transfer for a request; of `images` images, where the edge carries those.
    fn transfer(&mut self, ticket: &Ticket, images: usize) -> Duration {
        let tokens = ticket.sample.input.tokens.len();
        let Self { base, edge, known } = self;
        known.get_or((images, tokens), || {
            let [from, to] = [edge.from, edge.to].map(|place| &base.pipeline.slices[place]);
            // The model deals the cameras out to the chips of one end: so many make `images` on one chip.
            let dealt = if edge.payload == Payload::ImageTokens { from } else { to };
            let cameras = images * dealt.camera_chips();
            let request = RequestShape { cameras, prompt_tokens: tokens, steps: 1, batch: 1 };
            Duration::from_secs_f64(base.model(request).edge(&base.pipeline, edge).transfer_ms / 1e3)
        })
    }
}
