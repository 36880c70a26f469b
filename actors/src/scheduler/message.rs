//! What the scheduler is told and asked, and what it does about it.

use std::sync::Arc;
use std::time::Duration;

use kameo::message::{Context, Message};
use tensact_runtime::policy::Sample;
use tokio::sync::oneshot;

use super::{
    Counts, DUE_WITHOUT_DEADLINE, Entry, FOREVER, Life, Limits, Outcome, Replica, Scheduler, Sweeper,
};
use crate::clock::Moment;
use crate::home::Home;
use crate::recorder::{Place, What};
use crate::request::Refusal;
use crate::telemetry::{Outcome as Became, ParentSpan, Submitted, TraceId};
use crate::ticket::{AttemptId, End, RequestId};

/// The pipelines, once their stages run.
pub(crate) struct Connect {
    pub(crate) home: Arc<Home>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) sweepers: Vec<Sweeper>,
}

/// A request is handed in.
pub(crate) struct Submit {
    pub(crate) id: RequestId,
    /// The span that it was asked from.
    pub(crate) parent: Option<ParentSpan>,
    /// When it came, before it was prepared.
    pub(crate) arrived: Moment,
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
        let Submit { id, parent, arrived, sample, robot, deadline, reply } = submit;
        let deadline_at = deadline.filter(|deadline| *deadline < FOREVER).map(|deadline| now + deadline);
        let trace = parent.map_or_else(|| TraceId::of_number(id.0), |parent| parent.trace);
        self.recorder.take_down(|journal| {
            let (span, robot) = (parent.map(|parent| parent.span), robot.clone());
            journal
                .submitted(id.0, Submitted { trace, span, robot, arrived, at: now, deadline: deadline_at });
        });
        let life = Life {
            trace,
            sample,
            robot,
            admitted: now,
            deadline: deadline_at,
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
            let now = self.clock.now();
            self.recorder.take_down(|journal| journal.ended(id.0, Became::Cancelled, now));
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
