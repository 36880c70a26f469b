//! One robot: it sends an observation, waits for what comes back, and sends the next.

use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use super::answer::{self, Said};
use super::connection::{ConnectError, Connection, Lost, Reply};
use super::observation::Observer;
use super::shared::Shared;
use super::tally::{Sample, Tally};
use super::ticks::Ticks;
use crate::trace::Asked;

/// A robot under way.
pub(super) struct Robot {
    number: usize,
    shared: Arc<Shared>,
    /// Without them it sends as soon as it is answered.
    ticks: Option<Ticks>,
    tally: Tally,
}

/// What became of an observation, as far as the next one is concerned.
#[derive(PartialEq)]
enum Outcome {
    /// Something came back.
    Heard,
    /// Nobody waits for it any more.
    GivenUp,
}

impl Robot {
    pub(super) fn new(number: usize, shared: Arc<Shared>) -> Self {
        let plan = &shared.plan;
        let ticks = plan.rate.map(|rate| Ticks::new(rate, number, plan.robots.get()));
        Self { number, shared, ticks, tally: Tally::default() }
    }

    /// Sends observations until the run ends, and connects again when the connection is lost.
    pub(super) async fn run(mut self, mut attempt: Result<Connection, ConnectError>) -> Tally {
        let shared = Arc::clone(&self.shared);
        let mut observer = None;
        loop {
            match attempt {
                Ok(mut connection) => {
                    self.tally.opened += 1;
                    let observer = observer.get_or_insert_with(|| {
                        Observer::new(&shared.plan.content, &connection.metadata, self.number)
                    });
                    let Err(lost) = self.serve(&mut connection, observer).await else {
                        self.end();
                        connection.close().await;
                        return self.tally;
                    };
                    shared.progress.lost();
                    self.tally.lost.add_line(&lost.to_string());
                }
                Err(error) => self.tally.failed.add_line(&error.to_string()),
            }
            let again = async {
                sleep(shared.plan.pause).await;
                Connection::open(&shared.plan.access).await
            };
            attempt = tokio::select! {
                () = shared.no_more.cancelled() => break,
                attempt = again => attempt,
            };
            if attempt.is_ok() {
                shared.progress.connected();
            }
            self.skip();
        }
        self.end();
        self.tally
    }

    /// Sends observations over a connection until the run ends or the connection does.
    async fn serve(&mut self, connection: &mut Connection, observer: &mut Observer) -> Result<(), Lost> {
        while self.turn(connection).await? && self.shared.claim() {
            let outcome = self.ask(connection, observer).await;
            self.skip();
            if outcome? == Outcome::GivenUp {
                break;
            }
        }
        Ok(())
    }

    /// Waits until it is time to send; `false` when the run is over.
    async fn turn(&self, connection: &mut Connection) -> Result<bool, Lost> {
        let shared = &self.shared;
        let Some(ticks) = &self.ticks else { return Ok(!shared.no_more.is_cancelled()) };
        let due = ticks.due();
        tokio::select! {
            biased;
            () = shared.no_more.cancelled() => Ok(false),
            () = sleep_until(shared.start + due), if due < shared.plan.duration => Ok(true),
            lost = connection.idle() => Err(lost),
        }
    }

    /// Sends one observation and counts what comes back.
    async fn ask(&mut self, connection: &mut Connection, observer: &mut Observer) -> Result<Outcome, Lost> {
        if let Some(ticks) = &mut self.ticks {
            ticks.take();
        }
        self.tally.sent += 1;
        self.shared.progress.sent();
        let begun = Instant::now();
        let reply = tokio::select! {
            () = self.shared.give_up.cancelled() => None,
            reply = connection.ask(observer.next()) => Some(reply),
        };
        match reply {
            Some(Ok(Reply::Answer(message))) => self.answered(&message, begun),
            Some(Ok(Reply::Refusal(text))) => {
                self.tell(begun, "refused", Said::default());
                self.shared.progress.refused();
                self.tally.refused.add(&text);
            }
            Some(Err(lost)) => {
                self.tell(begun, "unanswered", Said::default());
                self.tally.unanswered += 1;
                return Err(lost);
            }
            None => {
                self.tell(begun, "unanswered", Said::default());
                self.tally.unanswered += 1;
                return Ok(Outcome::GivenUp);
            }
        }
        Ok(Outcome::Heard)
    }

    fn answered(&mut self, message: &[u8], begun: Instant) {
        let Self { shared, tally, .. } = self;
        let answer = answer::read(message, &shared.shape);
        let took = begun.elapsed();
        match answer {
            Ok(said) => {
                shared.progress.answered();
                let late = shared.plan.content.deadline.is_some_and(|deadline| took > deadline);
                tally.late += u64::from(late);
                tally.samples.push(Sample { end_to_end_ms: took.as_secs_f64() * 1e3, server: said.times });
                self.tell(begun, if late { "late" } else { "answered" }, said);
            }
            Err(reason) => {
                tally.bad.add(&reason);
                self.tell(begun, "bad answer", Said::default());
            }
        }
    }

    /// Tells whoever writes a trace what became of an observation.
    fn tell(&self, begun: Instant, outcome: &'static str, said: Said) {
        let Some(trace) = &self.shared.plan.trace else { return };
        let Said { parts, trace_id, .. } = said;
        let (robot, began, took) = (self.number, begun - self.shared.start, begun.elapsed());
        trace.asked(Asked { robot, began, took, outcome: outcome.into(), trace_id, parts });
    }

    fn end(&mut self) {
        self.skip();
        self.tally.ended = self.shared.now();
    }

    /// Counts ticks that passed while it could not send.
    fn skip(&mut self) {
        if let Some(ticks) = &mut self.ticks {
            self.tally.skipped += ticks.skip_before(self.shared.sending());
        }
    }
}
