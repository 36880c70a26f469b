//! What happened: counters for everybody, and a log for simulations.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tensact_topology::{ChipId, LayerRange, StageKind};

use crate::chip::Chips;
use crate::clock::{Clock, Moment};
use crate::seat::Share;
use crate::telemetry::{Activity, Journal, Transport};
use crate::ticket::{RequestId, Ticket, milliseconds};

/// A slice of a pipeline of the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) pipeline: usize,
    pub(crate) slice: usize,
}

/// What happened to a request or a slice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    Admitted(RequestId),
    Dispatched(RequestId, usize),
    Began(Place, Share, Vec<RequestId>),
    Ended(Place),
    Done(RequestId),
    Refused(RequestId, String),
    Failed(Place, String),
    Retired(usize),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Admitted(request) => write!(f, "{request} admitted"),
            What::Dispatched(request, pipeline) => write!(f, "{request} to pipeline {pipeline}"),
            What::Began(place, share, requests) => {
                let share = if *share == Share::Pass { "pass" } else { "layer" };
                write!(f, "pipeline {} slice {} {share}:", place.pipeline, place.slice)?;
                requests.iter().try_for_each(|request| write!(f, " {request}"))
            }
            What::Ended(place) => write!(f, "pipeline {} slice {} free", place.pipeline, place.slice),
            What::Done(request) => write!(f, "{request} done"),
            What::Refused(request, why) => write!(f, "{request} refused: {why}"),
            What::Failed(place, why) => {
                write!(f, "pipeline {} slice {} failed: {why}", place.pipeline, place.slice)
            }
            What::Retired(pipeline) => write!(f, "pipeline {pipeline} out of service"),
        }
    }
}

/// Receives every event with its moment, in order.
pub(crate) type Log = Box<dyn FnMut(Moment, &What) + Send>;

/// What a slice did and does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SliceStats {
    /// Its stage.
    pub stage: StageKind,
    /// Its layers.
    pub layers: LayerRange,
    /// Its chips.
    pub chips: Vec<ChipId>,
    /// Passes (vision, prefix) or denoising steps that were run.
    pub passes: u64,
    /// Requests in all of them; divided by the passes it is the mean batch.
    pub requests: u64,
    /// Time spent computing.
    pub busy_ms: f64,
    /// Requests in the pass that is running now.
    pub running: usize,
    /// Times it was started again.
    pub restarts: u64,
}

/// Bytes that went from one chip to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LinkStats {
    /// A chip of the slice that sent.
    pub from: ChipId,
    /// A chip of the slice that received.
    pub to: ChipId,
    /// How.
    pub transport: Transport,
    /// Bytes since the start.
    pub bytes: u64,
}

/// Counters of slices, chips and links, the log, and the journal if anybody wants one.
pub(crate) struct Recorder {
    clock: Clock,
    journal: OnceLock<Arc<Journal>>,
    inner: Mutex<Inner>,
}

struct Inner {
    slices: Vec<Vec<Record>>,
    chips: BTreeMap<ChipId, Duration>,
    links: BTreeMap<(ChipId, ChipId, Transport), u64>,
    log: Option<Log>,
}

#[derive(Clone)]
struct Record {
    stats: SliceStats,
    busy: Duration,
}

impl Recorder {
    pub(crate) fn new(clock: Clock, pipelines: &[tensact_topology::Pipeline], log: Option<Log>) -> Self {
        let record = |slice: &tensact_topology::Slice| Record {
            stats: SliceStats {
                stage: slice.stage,
                layers: slice.layers,
                chips: slice.chips.clone(),
                passes: 0,
                requests: 0,
                busy_ms: 0.0,
                running: 0,
                restarts: 0,
            },
            busy: Duration::ZERO,
        };
        let slices = pipelines.iter().map(|pipeline| pipeline.slices.iter().map(record).collect()).collect();
        let (chips, links) = Default::default();
        Self { clock, journal: OnceLock::new(), inner: Mutex::new(Inner { slices, chips, links, log }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Counters stay true whatever panicked beside them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The journal, which is kept from the first call on.
    pub(crate) fn keep_journal(&self) -> &Arc<Journal> {
        self.journal.get_or_init(|| Journal::new(self.clock))
    }

    /// Whether anybody wants to know.
    pub(crate) fn keeps_journal(&self) -> bool {
        self.journal.get().is_some()
    }

    /// Takes something down, if anybody wants to know.
    pub(crate) fn take_down(&self, write: impl FnOnce(&Journal)) {
        if let Some(journal) = self.journal.get() {
            write(journal);
        }
    }

    /// Takes an activity down, if anybody wants to know.
    pub(crate) fn acted(&self, activity: impl FnOnce() -> Activity) {
        self.take_down(|journal| journal.acted(activity()));
    }

    /// Writes to the log, if there is one.
    pub(crate) fn log(&self, what: impl FnOnce() -> What) {
        let mut inner = self.inner();
        if let Some(log) = &mut inner.log {
            log(self.clock.now(), &what());
        }
    }

    pub(crate) fn begin(&self, place: Place, share: Share, batch: &[Arc<Ticket>]) -> Moment {
        let now = self.clock.now();
        let mut inner = self.inner();
        inner.slices[place.pipeline][place.slice].stats.running += batch.len();
        if let Some(log) = &mut inner.log {
            let requests = batch.iter().map(|ticket| ticket.id.request).collect();
            log(now, &What::Began(place, share, requests));
        }
        now
    }

    pub(crate) fn end(
        &self,
        place: Place,
        began: Moment,
        chips: &Chips,
        share: Share,
        batch: &[Arc<Ticket>],
    ) -> Moment {
        let now = self.clock.now();
        let mut inner = self.inner();
        let record = &mut inner.slices[place.pipeline][place.slice];
        record.busy += now - began;
        record.stats.running = record.stats.running.saturating_sub(batch.len());
        // Layer by layer it makes a pass with the last one.
        if !matches!(share, Share::Layer { last: false, .. }) {
            record.stats.passes += 1;
            record.stats.requests += batch.len() as u64;
        }
        for chip in &**chips.ids() {
            *inner.chips.entry(*chip).or_default() += now - began;
        }
        if let Some(log) = &mut inner.log {
            log(now, &What::Ended(place));
        }
        now
    }

    pub(crate) fn transferred(&self, chips: &Chips, took: Duration) {
        let mut inner = self.inner();
        for chip in &**chips.ids() {
            *inner.chips.entry(*chip).or_default() += took;
        }
    }

    /// Counts what was sent from chip to chip.
    pub(crate) fn sent(&self, from: ChipId, to: ChipId, transport: Transport, bytes: u64) {
        *self.inner().links.entry((from, to, transport)).or_default() += bytes;
    }

    /// What went over the links.
    pub(crate) fn links(&self) -> Vec<LinkStats> {
        let links = self.inner().links.clone();
        let stats = |((from, to, transport), bytes)| LinkStats { from, to, transport, bytes };
        links.into_iter().map(stats).collect()
    }

    pub(crate) fn failed(&self, place: Place, cause: &str, batch: usize) {
        self.take_down(|journal| journal.stopped(place.pipeline, place.slice));
        let mut inner = self.inner();
        let record = &mut inner.slices[place.pipeline][place.slice];
        record.stats.running = record.stats.running.saturating_sub(batch);
        record.stats.restarts += 1;
        if let Some(log) = &mut inner.log {
            log(self.clock.now(), &What::Failed(place, cause.to_owned()));
        }
    }

    /// What the slices of a pipeline did.
    pub(crate) fn slices(&self, pipeline: usize) -> Vec<SliceStats> {
        let finished =
            |record: &Record| SliceStats { busy_ms: milliseconds(record.busy), ..record.stats.clone() };
        self.inner().slices[pipeline].iter().map(finished).collect()
    }

    /// How long each chip was taken, computing or transferring.
    pub(crate) fn busy(&self) -> BTreeMap<ChipId, Duration> {
        self.inner().chips.clone()
    }
}
