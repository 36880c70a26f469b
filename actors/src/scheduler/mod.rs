//! Admission, choice of a pipeline, and what becomes of requests whose stages fail. The supervisor of all stage actors.
//!
//! Invariants: those of [`waiting`] (*bounded*, *newest-only*, *earliest-first*), and
//! - *one-outcome*: every request that was handed in is answered exactly once: with actions, or with a [`Refusal`];
//! - *no-late-start*: what has missed its deadline, or cannot meet it, is not begun;
//! - *in-flight-bounded*: a pipeline holds at most `max_in_flight` attempts, counted until the last tensor that belongs
//!   to them is gone;
//! - *nothing-hangs*: an attempt that takes far longer than expected is given up, and its pipeline gets no new ones
//!   before it has come back.

mod life;
mod message;
mod replica;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kameo::actor::{Actor, ActorId, ActorRef, WeakActorRef};
use kameo::error::{ActorStopReason, Infallible};
use kameo::mailbox::{MailboxReceiver, Signal};
use tensact_runtime::Tensor;
use tensact_runtime::policy::Sample;
use tensact_topology::deployment::{Admission, Batching};
use tokio::sync::oneshot;

use crate::clock::{Clock, Moment};
use crate::edge::Outbox;
use crate::home::Home;
use crate::parcel::{Parcel, Wire};
use crate::recorder::Recorder;
use crate::request::Refusal;
use crate::seat::CostBase;
use crate::stage::Images;
use crate::telemetry::TraceId;
use crate::ticket::{AttemptId, Fate, Marks, RequestId};
pub(crate) use message::{Abandon, Cancel, Connect, Drain, Ended, Gone, Look, Seen, StageFailed, Submit};
use replica::{Health, Replica};
use waiting::{Entered, Waiting};

/// The actions of a request, in model units, and when it passed the stages.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) actions: Tensor,
    pub(crate) admitted: Moment,
    pub(crate) marks: Marks,
    pub(crate) done: Moment,
}

/// How a request ends.
pub(crate) type Outcome = Result<Answer, Refusal>;

/// Limits of a deployment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests that wait for a pipeline.
    pub(crate) queue: usize,
    /// Attempts in one pipeline.
    pub(crate) max_in_flight: usize,
    /// Requests in one pass.
    pub(crate) max_requests: usize,
}

impl Limits {
    /// Those that a deployment file names.
    pub(crate) fn new(batching: Batching, admission: Admission) -> Self {
        let Batching { max_requests, max_in_flight } = batching;
        Self { queue: admission.queue, max_in_flight, max_requests }
    }
}

/// Requests without a deadline are not put off for ever by those that have one.
const DUE_WITHOUT_DEADLINE: Duration = Duration::from_secs(30);

/// Who has so much time has no deadline.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a pipeline is entered.
pub(crate) struct Entry {
    pub(crate) outbox: Outbox<Parcel<Images>>,
    pub(crate) wire: Wire,
    /// Images that one chip of the first slice takes at a time, for so many cameras.
    pub(crate) chips: usize,
    pub(crate) costs: CostBase,
    /// Whether the cost model's times hold before anything was measured.
    pub(crate) trusted: bool,
    /// Time until images are on the board.
    pub(crate) upload: Duration,
    /// Whether several slices hold a request when it is done.
    pub(crate) ring: bool,
}

/// Wakes the stages of a pipeline to let go of what has ended.
pub(crate) type Sweeper = Box<dyn Fn() + Send + Sync>;

/// The actor.
pub(crate) struct Scheduler {
    home: Option<Arc<Home>>,
    clock: Clock,
    limits: Limits,
    recorder: Arc<Recorder>,
    entries: Vec<Entry>,
    replicas: Vec<Replica>,
    sweepers: Vec<Sweeper>,
    waiting: Waiting,
    requests: BTreeMap<RequestId, Life>,
    /// Deadlines of all requests, and when their attempts are overdue.
    deadlines: BTreeSet<(Moment, RequestId)>,
    overdue: BTreeSet<(Moment, AttemptId)>,
    /// When pipelines that do not answer are given up.
    probation: BTreeSet<(Moment, usize)>,
    counts: Counts,
    waiting_max: usize,
    /// Tickets that vanished without an end.
    lost: u64,
    closed: bool,
    drained: Vec<oneshot::Sender<()>>,
}

/// A request that has not been answered.
struct Life {
    trace: TraceId,
    sample: Arc<Sample>,
    robot: Option<Arc<str>>,
    admitted: Moment,
    deadline: Option<Moment>,
    /// By when it should leave the queue before others.
    due: Moment,
    attempts: u32,
    /// Attempts that failed while a stage computed them.
    failures: u32,
    /// Pipelines on which it failed.
    failed_on: Vec<usize>,
    reply: oneshot::Sender<Outcome>,
    flying: Option<Flying>,
}

/// An attempt on its way.
struct Flying {
    pipeline: usize,
    fate: Arc<Fate>,
    dispatched: Moment,
    overdue: Moment,
}

/// Requests by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Handed in.
    pub requests: u64,
    /// Answered with actions.
    pub done: u64,
    /// Refused for a full queue.
    pub queue_full: u64,
    /// Refused because they would have been late.
    pub deadline_impossible: u64,
    /// Replaced by a newer observation of their robot.
    pub superseded: u64,
    /// Past their deadline.
    pub expired: u64,
    /// Given up after failures.
    pub failed: u64,
    /// Refused because the pipeline was closed or out of service.
    pub unavailable: u64,
    /// Cancelled by their caller.
    pub cancelled: u64,
    /// Attempts that were made again.
    pub retried: u64,
}

impl Counts {
    /// All that were neither answered with actions nor cancelled.
    pub fn refused(&self) -> u64 {
        let Self { queue_full, deadline_impossible, superseded, expired, failed, unavailable, .. } = *self;
        queue_full + deadline_impossible + superseded + expired + failed + unavailable
    }
}

/// What an actor of this kind is made of.
pub(crate) struct SchedulerArgs {
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) recorder: Arc<Recorder>,
}

impl Actor for Scheduler {
    type Args = SchedulerArgs;
    type Error = Infallible;

    async fn on_start(args: SchedulerArgs, _: ActorRef<Self>) -> Result<Self, Infallible> {
        let SchedulerArgs { clock, limits, recorder } = args;
        Ok(Self {
            home: None,
            clock,
            limits,
            recorder,
            entries: Vec::new(),
            replicas: Vec::new(),
            sweepers: Vec::new(),
            waiting: Waiting::default(),
            requests: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            overdue: BTreeSet::new(),
            probation: BTreeSet::new(),
            counts: Counts::default(),
            waiting_max: 0,
            lost: 0,
            closed: false,
            drained: Vec::new(),
        })
    }

    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Infallible> {
        loop {
            let next = [
                self.deadlines.first().map(|(at, _)| *at),
                self.overdue.first().map(|(at, _)| *at),
                self.probation.first().map(|(at, _)| *at),
            ];
            let Some(next) = next.into_iter().flatten().min() else { return Ok(mailbox.recv().await) };
            tokio::select! {
                biased;
                signal = mailbox.recv() => return Ok(signal),
                () = self.clock.wait_until(next) => self.expire(),
            }
        }
    }

    async fn on_link_died(
        &mut self,
        _: WeakActorRef<Self>,
        _: ActorId,
        _: ActorStopReason,
    ) -> Result<ControlFlow<ActorStopReason>, Infallible> {
        // Stages that failed have said so themselves.
        Ok(ControlFlow::Continue(()))
    }
}
