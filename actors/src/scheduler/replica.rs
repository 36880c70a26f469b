//! The pipelines of a deployment as the scheduler sees them: how full, how fast, how healthy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tensact_runtime::policy::Sample;
use tensact_topology::RequestShape;

use crate::clock::Moment;
use crate::memo::Memo;
use crate::seat::CostBase;
use crate::ticket::AttemptId;

/// Failures of a pipeline within [`FAILURE_WINDOW`] after which it is taken out of service.
pub(super) const FAILURES_MAX: usize = 5;
/// How long a failure counts.
pub(super) const FAILURE_WINDOW: Duration = Duration::from_secs(10);
/// Share of a new measurement in what is expected of a pipeline.
const LEARNING_RATE: f64 = 0.125;

/// What a request costs on a pipeline with nothing else in flight, and how far apart requests can follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) latency: Duration,
    pub(super) interval: Duration,
}

impl Estimate {
    fn at(self, pace: f64) -> Self {
        Self { latency: self.latency.mul_f64(pace), interval: self.interval.mul_f64(pace) }
    }
}

/// What the time of a request depends on: cameras, instruction tokens, steps.
fn shape(sample: &Sample) -> (usize, usize, usize) {
    (sample.input.images.iter().flatten().count(), sample.input.tokens.len(), sample.steps.count())
}

/// Whether a pipeline takes requests.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Health {
    /// It does.
    InService,
    /// A request is overdue: no new ones until all it holds have come back.
    Overdue,
    /// No more; why.
    OutOfService(Arc<str>),
}

/// What is expected of an attempt.
#[derive(Debug, Clone, Copy)]
struct Expected {
    end: Moment,
    /// Nothing else was in flight when it was sent.
    alone: bool,
}

/// One pipeline.
pub(super) struct Replica {
    costs: CostBase,
    /// Most requests in one pass.
    batch: usize,
    most_in_flight: usize,
    known: Memo<(usize, usize, usize), Estimate>,
    /// Whether the cost model's times are taken as they are: it describes chips, and says little about a host.
    trusted: bool,
    /// Measured over modelled time of a request that is alone; nothing before anything was measured.
    pace: Option<f64>,
    /// Attempts whose tickets are not all back.
    in_flight: BTreeMap<AttemptId, Expected>,
    /// When the last of them is expected to end.
    last_expected: Moment,
    failures: VecDeque<Moment>,
    pub(super) health: Health,
}

impl Replica {
    /// A pipeline of chips whose times are known, or of a host whose times are to be measured.
    pub(super) fn new(costs: CostBase, batch: usize, most_in_flight: usize, trusted: bool) -> Self {
        Self {
            costs,
            batch,
            most_in_flight,
            known: Memo::default(),
            trusted,
            pace: trusted.then_some(1.0),
            in_flight: BTreeMap::new(),
            last_expected: Moment::ZERO,
            failures: VecDeque::new(),
            health: Health::InService,
        }
    }

    pub(super) fn takes_requests(&self) -> bool {
        self.health == Health::InService
    }

    pub(super) fn has_room(&self) -> bool {
        self.takes_requests() && self.in_flight.len() < self.most_in_flight
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What the cost model says; on a host corrected by what was measured, and nothing before that.
    pub(super) fn measured(&mut self, sample: &Sample) -> Option<Estimate> {
        let modelled = self.modelled(sample);
        self.pace.map(|pace| modelled.at(pace))
    }

    /// The same, to judge a request by. What was measured on a host may have been the exception: when nothing runs there,
    /// the next request may try.
    pub(super) fn estimate(&mut self, sample: &Sample) -> Option<Estimate> {
        self.measured(sample).filter(|_| self.trusted || !self.in_flight.is_empty())
    }

    /// The same, of a shape that was estimated before.
    pub(super) fn known(&self, sample: &Sample) -> Option<Estimate> {
        let known = self.known.get(shape(sample))?.at(self.pace?);
        Some(known).filter(|_| self.trusted || !self.in_flight.is_empty())
    }

    fn modelled(&mut self, sample: &Sample) -> Estimate {
        let shape = shape(sample);
        let Self { costs, batch, known, .. } = self;
        known.get_or(shape, || {
            let (cameras, prompt_tokens, steps) = shape;
            let cost = |batch| {
                let model = costs.model(RequestShape { cameras, prompt_tokens, steps, batch });
                model.pipeline(&costs.pipeline)
            };
            let ms = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1e3);
            Estimate {
                latency: ms(cost(1).map_or(0.0, |cost| cost.latency_ms)),
                interval: ms(cost(*batch).map_or(0.0, |cost| cost.bottleneck_ms)),
            }
        })
    }

    /// When a request that is sent there now would end.
    pub(super) fn expected(&self, now: Moment, estimate: Estimate) -> Moment {
        let behind = if self.in_flight.is_empty() { now } else { self.last_expected + estimate.interval };
        (now + estimate.latency).max(behind)
    }

    pub(super) fn dispatch(&mut self, id: AttemptId, now: Moment, estimate: Option<Estimate>) {
        let end = estimate.map_or(now, |estimate| self.expected(now, estimate));
        self.in_flight.insert(id, Expected { end, alone: self.in_flight.is_empty() });
        self.last_expected = end;
    }

    /// Learns from a request that is done: what came early or late lets those behind it come early or late.
    pub(super) fn done(&mut self, sample: &Sample, id: AttemptId, dispatched: Moment, now: Moment) {
        let Some(Expected { end, alone }) = self.in_flight.get(&id).copied() else { return };
        let shifted = |moment: Moment| (moment + now).saturating_sub(end).max(now);
        self.in_flight.values_mut().for_each(|expected| expected.end = shifted(expected.end));
        self.last_expected = shifted(self.last_expected);
        let modelled = self.modelled(sample).latency.as_secs_f64();
        if !self.trusted && modelled > 0.0 {
            let ratio = (now - dispatched).as_secs_f64() / modelled;
            match self.pace {
                None => self.pace = Some(ratio),
                // With others in flight it took longer than alone.
                Some(pace) if alone || ratio < pace => {
                    self.pace = Some(pace + LEARNING_RATE * (ratio - pace))
                }
                Some(_) => {}
            }
        }
    }

    /// All tickets of an attempt are back.
    pub(super) fn back(&mut self, id: AttemptId) {
        self.in_flight.remove(&id);
        if self.in_flight.is_empty() && self.health == Health::Overdue {
            self.health = Health::InService;
        }
    }

    /// Notes that a stage failed; whether that was once too often.
    pub(super) fn failed(&mut self, now: Moment) -> bool {
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|first| now - *first > FAILURE_WINDOW) {
            self.failures.pop_front();
        }
        self.failures.len() >= FAILURES_MAX
    }
}
