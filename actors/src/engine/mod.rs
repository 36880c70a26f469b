//! A placement as running actors: slices on chips, one channel per edge, the scheduler in front.

#[cfg(test)]
mod tests;
mod wiring;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kameo::actor::{ActorRef, Spawn};
use kameo::mailbox;
use tensact_runtime::policy::Sample;
use tensact_topology::{Board, ChipId, ModelSizes, Pipeline, Placement};
use tokio::sync::oneshot;

use crate::chip::Chip;
use crate::clock::{Clock, Moment};
use crate::devices::Devices;
use crate::home::Home;
use crate::recorder::{Log, Recorder};
use crate::request::Refusal;
use crate::scheduler::{
    Abandon, Cancel, Connect, Drain, Limits, Look, Outcome, Scheduler, SchedulerArgs, Seen, Submit,
};
use crate::simulate::faults::SliceFaults;
use crate::telemetry::ParentSpan;
use crate::ticket::RequestId;
use wiring::Wiring;

/// What is started.
pub(crate) struct Blueprint {
    pub(crate) board: Arc<Board>,
    pub(crate) sizes: ModelSizes,
    pub(crate) placement: Placement,
    pub(crate) limits: Limits,
    pub(crate) devices: Devices,
    pub(crate) clock: Clock,
    pub(crate) log: Option<Log>,
    /// Faults of slices, by pipeline and place.
    pub(crate) faults: BTreeMap<(usize, usize), Arc<SliceFaults>>,
    /// Whether first steps follow the cache layer by layer.
    pub(crate) follows: bool,
    /// Whether stages run on threads of their own, as they must where devices compute. Emulated chips that compute
    /// digests take no time but what the cost model says: their stages are tasks.
    pub(crate) on_threads: bool,
}

/// Running actors.
pub(crate) struct Engine {
    scheduler: ActorRef<Scheduler>,
    home: Arc<Home>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) clock: Clock,
    next_request: AtomicU64,
}

impl Engine {
    /// Starts all actors. Stages on threads need tokio's multi-threaded runtime.
    pub(crate) async fn start(mut blueprint: Blueprint) -> Self {
        let (clock, limits) = (blueprint.clock, blueprint.limits);
        let pipelines = std::mem::take(&mut blueprint.placement.pipelines);
        let recorder = Arc::new(Recorder::new(clock, &pipelines, blueprint.log.take()));
        let args = SchedulerArgs { clock, limits, recorder: Arc::clone(&recorder) };
        let scheduler = Scheduler::spawn_with_mailbox(args, mailbox::unbounded());
        let chips: BTreeMap<ChipId, Arc<Chip>> =
            pipelines.iter().flat_map(Pipeline::chips).map(|id| (id, Chip::new(id))).collect();
        let home = Arc::new(Home::new(scheduler.clone()));
        let (mut entries, mut sweepers) = (Vec::new(), Vec::new());
        for (number, pipeline) in pipelines.into_iter().enumerate() {
            let wiring = Wiring::new(&blueprint, number, pipeline, &chips, &recorder, &home);
            let (entry, sweeper) = wiring.spawn(&scheduler).await;
            entries.push(entry);
            sweepers.push(sweeper);
        }
        // The scheduler has just been spawned and stops for nobody yet.
        let _ = scheduler.ask(Connect { home: Arc::clone(&home), entries, sweepers }).await;
        Self { scheduler, home, recorder, clock, next_request: AtomicU64::new(0) }
    }

    /// Numbers a request, so that of two observations of a robot the later one is known, however long they are prepared.
    pub(crate) fn arrive(&self, parent: Option<ParentSpan>) -> Arrival {
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        Arrival { id, parent, at: self.clock.now() }
    }

    /// Hands a request in. Dropping what is returned cancels it.
    pub(crate) fn submit(
        &self,
        sample: Sample,
        robot: Option<Arc<str>>,
        deadline: Option<Duration>,
    ) -> Pending {
        self.submit_as(self.arrive(None), sample, robot, deadline)
    }

    /// Hands a request in that has arrived before.
    pub(crate) fn submit_as(
        &self,
        Arrival { id, parent, at: arrived }: Arrival,
        sample: Sample,
        robot: Option<Arc<str>>,
        deadline: Option<Duration>,
    ) -> Pending {
        let (reply, outcome) = oneshot::channel();
        let submit = Submit { id, parent, arrived, sample: Arc::new(sample), robot, deadline, reply };
        // A scheduler that is gone drops the reply, which the caller sees.
        let _ = self.scheduler.tell(submit).try_send();
        Pending { id, outcome, scheduler: self.scheduler.clone() }
    }

    /// What the scheduler knows; nothing when it has stopped.
    pub(crate) async fn look(&self) -> Option<Seen> {
        self.scheduler.ask(Look).await.ok()
    }

    /// Takes no more requests and waits until all are answered and gone.
    pub(crate) async fn drain(&self) {
        let (reply, drained) = oneshot::channel();
        if self.scheduler.tell(Drain(reply)).await.is_ok() {
            let _ = drained.await;
        }
    }

    /// Answers what is left and stops all actors, within twice the grace.
    pub(crate) async fn shut_down(&self, grace: Duration) {
        let _ = tokio::time::timeout(grace, self.drain()).await;
        let _ = self.scheduler.tell(Abandon).await;
        // The scheduler answers what it knows before it reads the stop behind it.
        let _ = self.scheduler.stop_gracefully().await;
        self.home.close_gently();
        let _ = tokio::time::timeout(grace, self.scheduler.wait_for_shutdown()).await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.home.close();
    }
}

/// A request that has arrived, and may still have to be prepared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    id: RequestId,
    parent: Option<ParentSpan>,
    at: Moment,
}

/// A request that was handed in.
pub(crate) struct Pending {
    pub(crate) id: RequestId,
    outcome: oneshot::Receiver<Outcome>,
    scheduler: ActorRef<Scheduler>,
}

impl Pending {
    /// Waits for the outcome.
    pub(crate) async fn outcome(mut self) -> Outcome {
        (&mut self.outcome).await.unwrap_or(Err(Refusal::Closed))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.outcome.is_terminated() {
            let _ = self.scheduler.tell(Cancel(self.id)).try_send();
        }
    }
}
