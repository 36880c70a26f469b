//! Simulation: a deployment on emulated chips, in simulated time.
//!
//! The same actors, edges and scheduler as everywhere run on one thread under a clock that stands still while somebody
//! works and jumps to the next event when everybody waits. Chips take the time that the cost model says and compute
//! digests instead of activations, so that a result shows which request it belongs to.
//!
//! Invariants, checked in every run and reported as [`Violations`]: *one-outcome* (every request is answered exactly
//! once), *own-result* (with its own actions), *bounded* (no more requests wait than may), *back-to-start* (after the
//! drain nothing is left of any request). And *replayable*: the same deployment, load and seed give the same events in
//! the same order.

pub(crate) mod faults;
mod rehearse;
mod report;
mod robots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact_runtime::model::flow::Steps;
use tensact_topology::deployment::{Admission, Batching, Deployment};
use tensact_topology::{Board, ModelSizes, Placement, RequestShape};

pub use faults::{Fault, FaultKind, FaultName, PlannedFaults};
pub use rehearse::RehearsalError;
pub use report::{Bound, ChipReport, Latencies, Report, Violations};

use crate::clock::Clock;
use crate::devices::{Arithmetic, Devices};
use crate::engine::{Blueprint, Engine};
use crate::recorder::Log;
use crate::scheduler::{Limits, Seen};
use crate::start::{StartError, emulated_placement};
use crate::telemetry::Listener;

/// A deployment whose chips are emulated.
#[derive(Debug, Clone)]
pub struct Simulation {
    pub(crate) board: Arc<Board>,
    pub(crate) sizes: ModelSizes,
    pub(crate) placement: Placement,
    pub(crate) request: RequestShape,
    pub(crate) batching: Batching,
    pub(crate) admission: Admission,
    /// Whether first steps follow the cache layer by layer.
    pub(crate) follows: bool,
}

/// What robots ask for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// Robots that ask at the same time.
    pub robots: usize,
    /// Observations that each sends in a second; without a rate, each sends the next as soon as it is answered.
    pub rate_hz: Option<f64>,
    /// For how long, in simulated time.
    pub duration: Duration,
    /// Most requests of all robots together.
    pub requests: Option<u64>,
    /// Time to answer.
    pub deadline: Option<Duration>,
    /// Whether requests differ in cameras, tokens, steps and deadlines, and some are cancelled.
    pub mixed: bool,
    /// Seed of everything that is left to chance.
    pub seed: u64,
}

/// Who looks on.
#[derive(Default)]
pub struct Watch {
    /// Gets a line for everything that happens.
    pub events: Option<Box<dyn FnMut(String) + Send>>,
    /// Gets what chips did and what became of requests.
    pub journal: Option<Listener>,
}

impl Scenario {
    /// Whether there is something to run.
    fn check(&self, request: &RequestShape) -> Result<(), StartError> {
        let steps = request.steps;
        let wrong = match self {
            Self { robots: 0, .. } => "robots is 0: expected at least one",
            Self { rate_hz: Some(rate), .. } if !(1e-6..=1e6).contains(rate) => {
                "the rate is out of range: expected 0.000001 to 1000000 observations per second"
            }
            Self { duration, .. } if duration.is_zero() || *duration > DURATION_MAX => {
                "the duration is out of range: expected more than nothing, and at most 366 days"
            }
            _ if Steps::new(steps).is_err() => "[request] steps is out of range: expected 1 to 1000",
            _ => return Ok(()),
        };
        Err(StartError::Scenario(wrong))
    }
}

/// Longest simulated time.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl Simulation {
    /// A deployment of a policy, with every chip emulated.
    ///
    /// # Errors
    /// Says everything that is wrong with the deployment.
    pub fn new(deployment: &Deployment, sizes: &ModelSizes) -> Result<Self, StartError> {
        let (board, placement) = emulated_placement(deployment, sizes)?;
        Ok(Self {
            board: Arc::new(board),
            sizes: *sizes,
            placement,
            request: deployment.request(sizes),
            batching: deployment.batching,
            admission: deployment.admission,
            follows: true,
        })
    }

    /// Runs a scenario with these faults.
    ///
    /// # Panics
    /// Within a tokio runtime: it has its own.
    ///
    /// # Errors
    /// When the scenario cannot be, or no runtime or slices can be had.
    pub fn run(
        &self,
        scenario: &Scenario,
        faults: &PlannedFaults,
        watch: Watch,
    ) -> Result<Report, StartError> {
        let Watch { events, journal } = watch;
        scenario.check(&self.request)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|_| StartError::Interrupted)?;
        let devices = Devices::load(&self.placement, &self.sizes, &Arithmetic::Digests)?;
        let log = events.map(|mut events| -> Log {
            Box::new(move |at, what| events(format!("{:12} {what}", at.as_micros())))
        });
        Ok(runtime.block_on(self.simulate(scenario, faults, devices, log, journal)))
    }

    /// What is started; within a runtime whose clock is paused.
    pub(crate) fn blueprint(&self, faults: &PlannedFaults, devices: Devices, log: Option<Log>) -> Blueprint {
        Blueprint {
            board: Arc::clone(&self.board),
            sizes: self.sizes,
            placement: self.placement.clone(),
            limits: Limits::new(self.batching, self.admission),
            devices,
            clock: Clock::simulated(),
            log,
            faults: faults.by_slice(),
            follows: self.follows,
            on_threads: false,
        }
    }

    async fn simulate(
        &self,
        scenario: &Scenario,
        faults: &PlannedFaults,
        devices: Devices,
        log: Option<Log>,
        journal: Option<Listener>,
    ) -> Report {
        let engine = Engine::start(self.blueprint(faults, devices, log));
        let engine = Arc::new(engine.await);
        if let Some(listener) = journal {
            engine.recorder.keep_journal().listen(listener);
        }
        let outcomes = robots::run(&engine, self, scenario).await;
        let (elapsed, busy) = (engine.clock.now(), engine.recorder.busy());
        let seen = settled(&engine).await;
        let report = report::Report::new(self, scenario, faults, &outcomes, elapsed, busy, seen);
        if let Some(engine) = Arc::into_inner(engine) {
            engine.shut_down(Duration::from_secs(1)).await;
        }
        report
    }
}

/// What the scheduler knows once everything is drained and chips that stalled have come back.
async fn settled(engine: &Engine) -> Option<Seen> {
    tokio::select! {
        biased;
        () = engine.drain() => {}
        () = engine.clock.wait(Duration::from_secs(SETTLING_SECONDS as u64)) => {}
    }
    for _ in 0..SETTLING_SECONDS {
        let seen = engine.look().await?;
        if seen.pipelines.iter().all(|(_, in_flight)| *in_flight == 0) {
            return Some(seen);
        }
        engine.clock.wait(Duration::from_secs(1)).await;
    }
    engine.look().await
}

/// Longer than any fault lasts.
const SETTLING_SECONDS: usize = 60;

/// Chips by number, for reports.
type Busy = BTreeMap<tensact_topology::ChipId, Duration>;
