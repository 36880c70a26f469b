//! The life of a request: refused, waiting, on its way, answered.

use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Entered, Flying, Health, Life, Outcome, Replica, Scheduler};
use crate::clock::Moment;
use crate::parcel::{Load, Parcel};
use crate::recorder::What;
use crate::request::Refusal;
use crate::stage::{Image, Images, grouped};
use crate::telemetry::Outcome as Became;
use crate::ticket::{AttemptId, End, RequestId, Ticket, milliseconds};

/// Failures of a request before it is given up.
const FAILURES_MAX: u32 = 3;
/// Attempts, those included that were disturbed by the failure of another.
const ATTEMPTS_MAX: u32 = 12;
/// An attempt is overdue after so many times what it was expected to take, and not before [`PATIENCE_MIN`].
const PATIENCE: u32 = 10;
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// The same while nobody knows what to expect.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1800);

impl Scheduler {
    /// Why a new request is not taken.
    pub(super) fn refusal(&mut self, life: &Life, now: Moment) -> Option<Refusal> {
        if self.closed {
            return Some(Refusal::Closed);
        }
        if let Some(refusal) = self.out_of_service() {
            return Some(refusal);
        }
        let takes_a_place = !life.robot.as_ref().is_some_and(|robot| self.waiting.has(robot));
        let waiting = self.waiting.len();
        let room = self.replicas.iter().any(|replica| replica.has_room());
        if takes_a_place && waiting >= self.limits.queue && !room {
            return Some(Refusal::QueueFull { waiting, capacity: self.limits.queue });
        }
        let deadline = life.deadline?;
        let ahead = self.waiting.ahead(life.due);
        let expected = self.expected(life, now, ahead)?;
        (expected > deadline).then(|| Refusal::DeadlineImpossible {
            deadline_ms: milliseconds(deadline - life.admitted),
            expected_ms: milliseconds(expected - life.admitted),
            ahead,
        })
    }

    fn out_of_service(&self) -> Option<Refusal> {
        let mut cause = None;
        for replica in &self.replicas {
            match &replica.health {
                Health::OutOfService(why) => cause = Some(Arc::clone(why)),
                _ => return None,
            }
        }
        Some(Refusal::OutOfService { pipelines: self.replicas.len(), cause: cause? })
    }

    /// When a request would be answered with so many ahead of it; nothing as long as nobody can tell.
    fn expected(&mut self, life: &Life, now: Moment, ahead: usize) -> Option<Moment> {
        let mut soonest: Option<Moment> = None;
        let mut rate = 0.0;
        for replica in self.replicas.iter_mut().filter(|replica| replica.takes_requests()) {
            let estimate = replica.estimate(&life.sample)?;
            let expected = replica.expected(now, estimate);
            soonest = Some(soonest.map_or(expected, |soonest| soonest.min(expected)));
            rate += 1.0 / estimate.interval.as_secs_f64().max(1e-9);
        }
        Some(soonest? + Duration::from_secs_f64(ahead as f64 / rate.max(1e-9)))
    }

    /// Puts a request among those that wait.
    pub(super) fn enter(&mut self, id: RequestId) {
        let Some(life) = self.requests.get(&id) else { return };
        match self.waiting.enter(id, life.due, life.robot.clone()) {
            Entered::Alone => {}
            Entered::Replaced(older) => self.supersede(older),
            Entered::Outdated => self.supersede(id),
        }
    }

    fn supersede(&mut self, id: RequestId) {
        if let Some(life) = self.forget(id) {
            let robot = life.robot.unwrap_or_else(|| "".into());
            self.answer(id, life.reply, Err(Refusal::Superseded { robot }));
        }
    }

    /// Sends on as many as there is room for.
    pub(super) fn dispatch(&mut self) {
        self.send_waiting();
        self.waiting_max = self.waiting_max.max(self.waiting.len());
    }

    fn send_waiting(&mut self) {
        while self.replicas.iter().any(Replica::has_room) {
            // Nearly always the first; only who failed somewhere may have to wait for a place elsewhere.
            let Some((id, pipeline)) = self.waiting.in_order().find_map(|id| Some((id, self.place_for(id)?)))
            else {
                return;
            };
            let now = self.clock.now();
            let Some(life) = self.requests.get(&id) else { return };
            let estimate = self.replicas[pipeline].known(&life.sample);
            let soonest = now + estimate.map_or(Duration::ZERO, |estimate| estimate.latency);
            if life.deadline.is_some_and(|deadline| soonest > deadline) {
                self.expired(id, "the queue, and could not be done in time any more");
            } else if !self.send(id, pipeline, now) {
                return;
            }
        }
    }

    /// The pipeline with room that would answer a request first. One on which it failed is taken only when all that are
    /// in service are such.
    fn place_for(&self, id: RequestId) -> Option<usize> {
        let life = self.requests.get(&id)?;
        let now = self.clock.now();
        let tried = |pipeline: &usize| life.failed_on.contains(pipeline);
        let in_service = self.replicas.iter().enumerate().filter(|(_, replica)| replica.takes_requests());
        let nowhere_else = in_service.map(|(pipeline, _)| pipeline).all(|pipeline| tried(&pipeline));
        let open = self.replicas.iter().enumerate().filter(|(_, replica)| replica.has_room());
        open.filter(|(pipeline, _)| nowhere_else || !tried(pipeline))
            .min_by_key(|(pipeline, replica)| {
                let estimate = replica.known(&life.sample);
                (estimate.map_or(now, |estimate| replica.expected(now, estimate)), *pipeline)
            })
            .map(|(pipeline, _)| pipeline)
    }

    /// Sends a request into a pipeline; whether that could be done.
    fn send(&mut self, id: RequestId, pipeline: usize, now: Moment) -> bool {
        let (Some(home), Some(life)) = (self.home.clone(), self.requests.get_mut(&id)) else { return false };
        self.waiting.leave(id, life.due);
        life.attempts += 1;
        let attempt = AttemptId { request: id, number: life.attempts };
        let replica = &mut self.replicas[pipeline];
        let estimate = replica.measured(&life.sample);
        let expected = estimate.map(|estimate| replica.expected(now, estimate));
        replica.dispatch(attempt, now, estimate);
        let patience = expected.map_or(PATIENCE_UNKNOWN, |expected| (expected - now) * PATIENCE);
        let overdue = now + patience.max(PATIENCE_MIN);
        self.overdue.insert((overdue, attempt));
        let ticket = Ticket {
            id: attempt,
            trace: life.trace,
            pipeline,
            sample: Arc::clone(&life.sample),
            deadline: life.deadline,
            dispatched: now,
            fate: Arc::default(),
            alone: life.failures > 0,
            marks: Default::default(),
            home,
        };
        life.flying = Some(Flying { pipeline, fate: Arc::clone(&ticket.fate), dispatched: now, overdue });
        self.recorder.log(|| What::Dispatched(id, pipeline));
        self.recorder.take_down(|journal| journal.dispatched(id.0, pipeline, now));
        let ticket = Arc::new(ticket);
        let entry = &self.entries[pipeline];
        let cameras = ticket.cameras();
        let images = (0..cameras).map(|camera| Image { camera, hidden: None }).collect();
        for images in grouped(images, cameras.div_ceil(entry.chips)) {
            let content = Images { ticket: Arc::clone(&ticket), images, not_before: now + entry.upload };
            // The edge holds all groups of `max_in_flight` requests; were it full, the ticket would come back as lost.
            let load = Load { wire: entry.wire, bytes: 0, takes: Duration::ZERO };
            let _ = entry.outbox.try_send(Parcel { load, content });
        }
        true
    }

    /// Decides what becomes of a request whose attempt has ended.
    pub(super) fn attempt_ended(&mut self, id: AttemptId, pipeline: usize, end: End) {
        if self.entries[pipeline].ring || !matches!(end, End::Done(..)) {
            (self.sweepers[pipeline])();
        }
        let current = self
            .requests
            .get(&id.request)
            .is_some_and(|life| life.flying.is_some() && life.attempts == id.number);
        if !current {
            return;
        }
        match end {
            End::Done(actions, marks) => {
                let Some(life) = self.forget(id.request) else { return };
                let done = self.clock.now();
                self.replicas[pipeline].done(&life.sample, id, marks.dispatched, done);
                let answer = Answer { actions, admitted: life.admitted, marks, done };
                self.answer(id.request, life.reply, Ok(answer));
            }
            End::Expired(boundary) => self.expired(id.request, boundary),
            End::Failed(cause) => self.try_again(id.request, cause, true),
            End::Disturbed(cause) => self.try_again(id.request, cause, false),
        }
    }

    /// Lets a request run again, if there is hope; `failed` when it was this request that a stage failed on.
    fn try_again(&mut self, id: RequestId, cause: Arc<str>, failed: bool) {
        let out_of_service = self.out_of_service();
        let Some(life) = self.requests.get_mut(&id) else { return };
        let number = life.attempts;
        if let Some(flying) = life.flying.take() {
            self.overdue.remove(&(flying.overdue, AttemptId { request: id, number }));
            if failed {
                life.failures += 1;
                life.failed_on.push(flying.pipeline);
            }
        }
        if life.failures < FAILURES_MAX && number < ATTEMPTS_MAX && out_of_service.is_none() {
            self.counts.retried += 1;
            return self.enter(id);
        }
        if let Some(life) = self.forget(id) {
            let refusal = out_of_service.unwrap_or(Refusal::Failed { attempts: life.attempts, cause });
            self.answer(id, life.reply, Err(refusal));
        }
    }

    fn expired(&mut self, id: RequestId, boundary: &'static str) {
        if let Some(life) = self.forget(id) {
            self.end_attempt(&life);
            let deadline = life.deadline.unwrap_or_default().saturating_sub(life.admitted);
            let refusal = Refusal::Expired { deadline_ms: milliseconds(deadline), boundary };
            self.answer(id, life.reply, Err(refusal));
        }
    }

    /// What the clock has brought: deadlines that have passed, attempts that are overdue.
    pub(super) fn expire(&mut self) {
        let now = self.clock.now();
        while let Some((_, id)) = self.deadlines.first().filter(|(at, _)| *at <= now).copied() {
            let flying = self.requests.get(&id).is_some_and(|life| life.flying.is_some());
            self.deadlines.pop_first();
            self.expired(id, if flying { "a pipeline" } else { "the queue" });
        }
        while let Some((_, id)) = self.overdue.first().filter(|(at, _)| *at <= now).copied() {
            self.overdue.pop_first();
            self.overdue(id, now);
        }
        while let Some((_, pipeline)) = self.probation.first().filter(|(at, _)| *at <= now).copied() {
            self.probation.pop_first();
            if self.replicas[pipeline].health == Health::Overdue {
                self.retire(pipeline, format!("pipeline {pipeline} does not answer").into());
            }
        }
        self.dispatch();
        self.report_if_drained();
    }

    fn overdue(&mut self, id: AttemptId, now: Moment) {
        let Some(life) = self.requests.get_mut(&id.request) else { return };
        let Some(flying) = life.flying.take() else { return };
        // Whoever ends it first decides: its answer may already be in the mailbox.
        let (pipeline, waited) = (flying.pipeline, now - flying.dispatched);
        let decided_here = flying.fate.end();
        life.flying = Some(flying);
        if !decided_here {
            return;
        }
        let cause: Arc<str> = format!("pipeline {pipeline} does not answer").into();
        let replica = &mut self.replicas[pipeline];
        if replica.takes_requests() {
            replica.health = Health::Overdue;
            // As long again as it was waited for.
            self.probation.insert((now + waited.max(PATIENCE_MIN), pipeline));
        }
        (self.sweepers[pipeline])();
        self.try_again(id.request, cause, true);
    }

    /// Takes a pipeline out of service; what it holds is tried elsewhere.
    pub(super) fn retire(&mut self, pipeline: usize, cause: Arc<str>) {
        self.replicas[pipeline].health = Health::OutOfService(Arc::clone(&cause));
        self.recorder.log(|| What::Retired(pipeline));
        let held: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, life)| {
                life.flying.as_ref().is_some_and(|flying| flying.pipeline == pipeline && flying.fate.end())
            })
            .map(|(id, _)| *id)
            .collect();
        for id in held {
            self.try_again(id, Arc::clone(&cause), false);
        }
        (self.sweepers[pipeline])();
        if let Some(refusal) = self.out_of_service() {
            for id in self.waiting.in_order().collect::<Vec<_>>() {
                if let Some(life) = self.forget(id) {
                    self.answer(id, life.reply, Err(refusal.clone()));
                }
            }
        }
        self.dispatch();
    }

    /// Ends the attempt of a request that is answered otherwise.
    pub(super) fn end_attempt(&self, life: &Life) {
        if let Some(flying) = &life.flying
            && flying.fate.end()
        {
            (self.sweepers[flying.pipeline])();
        }
    }

    /// Removes a request from everywhere.
    pub(super) fn forget(&mut self, id: RequestId) -> Option<Life> {
        let life = self.requests.remove(&id)?;
        self.waiting.leave(id, life.due);
        if let Some(deadline) = life.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(flying) = &life.flying {
            self.overdue.remove(&(flying.overdue, AttemptId { request: id, number: life.attempts }));
        }
        Some(life)
    }

    pub(super) fn answer(
        &mut self,
        id: RequestId,
        reply: tokio::sync::oneshot::Sender<Outcome>,
        outcome: Outcome,
    ) {
        let counts = &mut self.counts;
        let count = match &outcome {
            Ok(_) => &mut counts.done,
            Err(Refusal::QueueFull { .. }) => &mut counts.queue_full,
            Err(Refusal::DeadlineImpossible { .. }) => &mut counts.deadline_impossible,
            Err(Refusal::Superseded { .. }) => &mut counts.superseded,
            Err(Refusal::Expired { .. }) => &mut counts.expired,
            Err(Refusal::Failed { .. }) => &mut counts.failed,
            Err(Refusal::OutOfService { .. } | Refusal::Closed) => &mut counts.unavailable,
        };
        *count += 1;
        self.recorder.log(|| match &outcome {
            Ok(_) => What::Done(id),
            Err(refusal) => What::Refused(id, refusal.to_string()),
        });
        let (now, became) = (self.clock.now(), outcome.as_ref().err().map_or(Became::Done, Became::from));
        self.recorder.take_down(|journal| journal.ended(id.0, became, now));
        // A caller that is gone does not want to know.
        let _ = reply.send(outcome);
    }

    /// Tells those who wait for it that nothing is left.
    pub(super) fn report_if_drained(&mut self) {
        let idle = self.closed
            && self.requests.is_empty()
            && self.replicas.iter().all(|replica| replica.in_flight() == 0 || !replica.takes_requests());
        if idle {
            for reply in self.drained.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}
