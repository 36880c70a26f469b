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
use kameo::message::{Context, Message};
use tensact_runtime::Tensor;
use tensact_runtime::policy::Sample;
use tokio::sync::oneshot;

use crate::clock::{Clock, Moment};
use crate::edge::Outbox;
use crate::home::Home;
use crate::recorder::{Place, Recorder, What};
use crate::request::Refusal;
use crate::seat::{CostBase, Parcel};
use crate::stage::Images;
use crate::ticket::{AttemptId, End, Fate, Marks, RequestId};
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

/// Requests without a deadline are not put off for ever by those that have one.
const DUE_WITHOUT_DEADLINE: Duration = Duration::from_secs(30);

/// Who has so much time has no deadline.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a pipeline is entered.
pub(crate) struct Entry {
    pub(crate) outbox: Outbox<Parcel<Images>>,
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

/// The pipelines, once their stages run.
pub(crate) struct Connect {
    pub(crate) home: Arc<Home>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) sweepers: Vec<Sweeper>,
}

/// A request is handed in.
pub(crate) struct Submit {
    pub(crate) id: RequestId,
    pub(crate) sample: Arc<Sample>,
    pub(crate) robot: Option<Arc<str>>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

/// Its caller does not wait any more.
pub(crate) struct Cancel(pub(crate) RequestId);

/// An attempt has ended.
pub(crate) struct Ended {
    pub(crate) id: AttemptId,
    pub(crate) pipeline: usize,
    pub(crate) end: End,
}

/// Nothing is left of an attempt.
pub(crate) struct Gone {
    pub(crate) id: AttemptId,
    pub(crate) pipeline: usize,
    /// It vanished without an end.
    pub(crate) unended: bool,
}

/// A stage has failed and is started again.
pub(crate) struct StageFailed {
    pub(crate) place: Place,
    pub(crate) cause: Arc<str>,
    /// Whether it says something about the device, not only about the request.
    pub(crate) counts: bool,
}

/// Take no more requests; say when all are answered and gone.
pub(crate) struct Drain(pub(crate) oneshot::Sender<()>);

/// Answer all that are left.
pub(crate) struct Abandon;

/// What the scheduler knows.
pub(crate) struct Look;

/// The answer to [`Look`].
#[derive(Debug, Clone, kameo::Reply)]
pub(crate) struct Seen {
    pub(crate) counts: Counts,
    pub(crate) waiting: usize,
    /// Most requests that waited at a time.
    pub(crate) waiting_max: usize,
    /// Tickets that vanished without an end.
    pub(crate) lost: u64,
    /// For each pipeline: whether it is in service, and its attempts in flight.
    pub(crate) pipelines: Vec<(bool, usize)>,
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

impl Message<Connect> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, Connect { home, entries, sweepers }: Connect, _: &mut Context<Self, ()>) {
        let Limits { max_requests, max_in_flight, .. } = self.limits;
        self.replicas = entries
            .iter()
            .map(|entry| Replica::new(entry.costs.clone(), max_requests, max_in_flight, entry.trusted))
            .collect();
        self.home = Some(home);
        self.entries = entries;
        self.sweepers = sweepers;
    }
}

impl Message<Submit> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, submit: Submit, _: &mut Context<Self, ()>) {
        let now = self.clock.now();
        self.counts.requests += 1;
        self.recorder.log(|| What::Admitted(submit.id));
        for replica in &mut self.replicas {
            replica.estimate(&submit.sample);
        }
        let Submit { id, sample, robot, deadline, reply } = submit;
        let life = Life {
            sample,
            robot,
            admitted: now,
            deadline: deadline.filter(|deadline| *deadline < FOREVER).map(|deadline| now + deadline),
            due: now + deadline.unwrap_or(DUE_WITHOUT_DEADLINE).min(DUE_WITHOUT_DEADLINE),
            attempts: 0,
            failures: 0,
            failed_on: Vec::new(),
            reply,
            flying: None,
        };
        match self.refusal(&life, now) {
            Some(refusal) => self.answer(id, life.reply, Err(refusal)),
            None => {
                self.deadlines.extend(life.deadline.map(|deadline| (deadline, id)));
                self.requests.insert(id, life);
                self.enter(id);
                self.dispatch();
            }
        }
    }
}

impl Message<Cancel> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, Cancel(id): Cancel, _: &mut Context<Self, ()>) {
        if let Some(life) = self.forget(id) {
            self.counts.cancelled += 1;
            self.recorder.log(|| What::Refused(id, "cancelled".into()));
            self.end_attempt(&life);
            self.dispatch();
            self.report_if_drained();
        }
    }
}

impl Message<Ended> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, Ended { id, pipeline, end }: Ended, _: &mut Context<Self, ()>) {
        self.attempt_ended(id, pipeline, end);
        self.dispatch();
        self.report_if_drained();
    }
}

impl Message<Gone> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, Gone { id, pipeline, unended }: Gone, _: &mut Context<Self, ()>) {
        self.replicas[pipeline].back(id);
        if unended {
            self.lost += 1;
            self.attempt_ended(id, pipeline, End::Failed("its tensors were lost".into()));
        }
        self.dispatch();
        self.report_if_drained();
    }
}

impl Message<StageFailed> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, StageFailed { place, cause, counts }: StageFailed, _: &mut Context<Self, ()>) {
        let replica = &mut self.replicas[place.pipeline];
        if counts && replica.failed(self.clock.now()) && replica.takes_requests() {
            self.retire(place.pipeline, cause);
            self.report_if_drained();
        }
    }
}

impl Message<Drain> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, Drain(reply): Drain, _: &mut Context<Self, ()>) {
        self.closed = true;
        self.drained.push(reply);
        self.report_if_drained();
    }
}

impl Message<Abandon> for Scheduler {
    type Reply = ();

    async fn handle(&mut self, _: Abandon, _: &mut Context<Self, ()>) {
        self.closed = true;
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            if let Some(life) = self.forget(id) {
                self.end_attempt(&life);
                self.answer(id, life.reply, Err(Refusal::Closed));
            }
        }
    }
}

impl Message<Look> for Scheduler {
    type Reply = Seen;

    async fn handle(&mut self, _: Look, _: &mut Context<Self, Seen>) -> Seen {
        let pipelines =
            self.replicas.iter().map(|replica| (replica.takes_requests(), replica.in_flight())).collect();
        Seen {
            counts: self.counts,
            waiting: self.waiting.len(),
            waiting_max: self.waiting_max,
            lost: self.lost,
            pipelines,
        }
    }
}
