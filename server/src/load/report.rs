//! What came back, of all robots together.

use serde::Serialize;
use tensact::simulate::Latencies;

use super::Plan;
use super::answer::Metadata;
use super::groups::{Group, Groups};
use super::tally::{Sample, Tally};

/// Most groups of messages that are told.
const GROUPS_MAX: usize = 8;

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// What robots did.
    pub load: Load,
    /// What the server said of itself.
    pub server: Metadata,
    /// Seconds until the last robot was done.
    pub elapsed_s: f64,
    /// Observations by what became of them.
    pub counts: Counts,
    /// Observations sent per second.
    pub offered_per_s: f64,
    /// Action chunks per second.
    pub throughput_per_s: f64,
    /// Times of observations that were answered with actions.
    pub latency_ms: LatencyReport,
    /// How much they differ; absent when nothing was answered.
    pub jitter_ms: Option<Jitter>,
    /// What the server said to observations that it refused.
    pub refusals: Vec<Group>,
    /// What was wrong with bad answers.
    pub bad_answers: Vec<Group>,
    /// The robots' connections.
    pub connections: Connections,
    /// Every end-to-end latency in milliseconds, in ascending order.
    #[serde(skip)]
    pub end_to_end_ms: Vec<f64>,
}

/// What robots did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct Load {
    pub url: String,
    pub robots: usize,
    pub rate_hz: Option<f64>,
    pub duration_s: f64,
    pub requests: Option<u64>,
    pub profile: String,
    pub image_side: usize,
    pub steps: Option<u32>,
    pub deadline_ms: Option<f64>,
    pub seed: u64,
}

/// Observations by what became of them: `sent` is `answered`, `refused`, `bad` and `unanswered` together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Sent to the server.
    pub sent: u64,
    /// Answered with actions that a robot can execute.
    pub answered: u64,
    /// Refused with a message.
    pub refused: u64,
    /// Answered with something else than finite actions of the shape that the others have.
    pub bad: u64,
    /// Neither: the connection was lost, or the run ended.
    pub unanswered: u64,
    /// Of those answered, how many after the deadline.
    pub late: u64,
    /// Not sent when it was time: the one before was unanswered, or there was no connection.
    pub skipped: u64,
}

/// The four latencies of an answer, innermost first; those of the server are absent when it does not report them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencyReport {
    /// Vision tower, prefix and denoising alone.
    pub model: Option<Latencies>,
    /// From the observation in the server's pipeline to the actions, waiting included.
    pub pipeline: Option<Latencies>,
    /// The server's engine, as openpi's servers measure it.
    pub engine: Option<Latencies>,
    /// From before an observation is encoded until its answer is decoded, at the robot.
    pub end_to_end: Option<Latencies>,
}

/// How much end-to-end latencies differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Jitter {
    /// Standard deviation.
    pub deviation: f64,
    /// Mean difference of successive latencies of a robot, without sign; absent when no robot was answered twice.
    pub successive: Option<f64>,
}

/// The robots' connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// How many were opened.
    pub opened: u64,
    /// How many of these ended before the run did.
    pub lost: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// Why connections were lost or failed.
    pub problems: Vec<Group>,
}

impl LoadReport {
    pub(super) fn new(plan: &Plan, server: Metadata, tallies: Vec<Tally>) -> Self {
        let jitter_ms = jitter(&tallies);
        let sum = sum(tallies);
        let elapsed_s = sum.ended.as_secs_f64();
        let counts = Counts {
            sent: sum.sent,
            answered: sum.samples.len() as u64,
            refused: sum.refused.total(),
            bad: sum.bad.total(),
            unanswered: sum.unanswered,
            late: sum.late,
            skipped: sum.skipped,
        };
        let mut end_to_end_ms: Vec<f64> = sum.samples.iter().map(|sample| sample.end_to_end_ms).collect();
        end_to_end_ms.sort_by(f64::total_cmp);
        Self {
            load: Load::of(plan, &server),
            server,
            elapsed_s,
            counts,
            offered_per_s: counts.sent as f64 / elapsed_s.max(1e-9),
            throughput_per_s: counts.answered as f64 / elapsed_s.max(1e-9),
            latency_ms: LatencyReport::of(&sum.samples),
            jitter_ms,
            refusals: sum.refused.top(GROUPS_MAX),
            bad_answers: sum.bad.top(GROUPS_MAX),
            connections: Connections::of(sum.opened, sum.lost, sum.failed),
            end_to_end_ms,
        }
    }
}

impl Load {
    fn of(plan: &Plan, server: &Metadata) -> Self {
        let Plan { access, content, robots, rate, duration, requests, .. } = plan;
        Self {
            url: access.endpoint.to_string(),
            robots: robots.get(),
            rate_hz: rate.map(|rate| rate.per_second()),
            duration_s: duration.as_secs_f64(),
            requests: *requests,
            profile: content.profile(server).name,
            image_side: content.image_side,
            steps: content.steps,
            deadline_ms: content.deadline.map(|deadline| deadline.as_secs_f64() * 1e3),
            seed: content.seed,
        }
    }
}

impl LatencyReport {
    fn of(samples: &[Sample]) -> Self {
        let latencies = |of: fn(&Sample) -> Option<f64>| {
            let times: Vec<f64> = samples.iter().filter_map(of).collect();
            (!times.is_empty()).then(|| Latencies::of(times))
        };
        Self {
            model: latencies(|sample| sample.server.model),
            pipeline: latencies(|sample| sample.server.pipeline),
            engine: latencies(|sample| sample.server.engine),
            end_to_end: latencies(|sample| Some(sample.end_to_end_ms)),
        }
    }
}

impl Connections {
    fn of(opened: u64, lost: Groups, failed: Groups) -> Self {
        let counts = (lost.total(), failed.total());
        let mut problems = lost;
        problems.merge(failed);
        Self { opened, lost: counts.0, failed: counts.1, problems: problems.top(GROUPS_MAX) }
    }
}

fn sum(tallies: Vec<Tally>) -> Tally {
    let mut sum = Tally::default();
    for tally in tallies {
        sum.sent += tally.sent;
        sum.samples.extend(tally.samples);
        sum.refused.merge(tally.refused);
        sum.bad.merge(tally.bad);
        sum.unanswered += tally.unanswered;
        sum.late += tally.late;
        sum.skipped += tally.skipped;
        sum.opened += tally.opened;
        sum.lost.merge(tally.lost);
        sum.failed.merge(tally.failed);
        sum.ended = sum.ended.max(tally.ended);
    }
    sum
}

fn jitter(tallies: &[Tally]) -> Option<Jitter> {
    let robots = || tallies.iter().map(|tally| tally.samples.as_slice());
    let all = || robots().flatten().map(|sample| sample.end_to_end_ms);
    let mean = mean(all())?;
    let deviation = self::mean(all().map(|time| (time - mean).powi(2)))?.sqrt();
    let successive = robots()
        .flat_map(|samples| samples.windows(2))
        .map(|pair| (pair[1].end_to_end_ms - pair[0].end_to_end_ms).abs());
    Some(Jitter { deviation, successive: self::mean(successive) })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::ServerTimes;

    fn tally(times: &[f64]) -> Tally {
        let sample = |&end_to_end_ms: &f64| Sample {
            end_to_end_ms,
            server: ServerTimes { engine: Some(1.0), ..ServerTimes::default() },
        };
        Tally { samples: times.iter().map(sample).collect(), ..Tally::default() }
    }

    #[test]
    fn jitter_compares_answers_of_the_same_robot() {
        let jitter = jitter(&[tally(&[1.0, 3.0]), tally(&[9.0, 10.0, 7.0]), tally(&[])]).unwrap();
        assert_eq!(jitter.successive, Some(2.0), "2, 1 and 3; not the 6 between two robots");
        assert!((jitter.deviation - 12f64.sqrt()).abs() < 1e-12, "{}", jitter.deviation);
    }

    #[test]
    fn one_answer_has_no_successor_and_none_has_no_jitter() {
        let one = Jitter { deviation: 0.0, successive: None };
        assert_eq!(jitter(&[tally(&[5.0])]), Some(one));
        assert_eq!(jitter(&[tally(&[])]), None);
    }

    #[test]
    fn a_latency_that_no_answer_reports_is_absent() {
        let report = LatencyReport::of(&tally(&[2.0, 4.0]).samples);
        assert_eq!((report.model, report.pipeline), (None, None));
        assert_eq!(report.engine.unwrap().max, 1.0);
        assert_eq!(report.end_to_end.map(|times| (times.p50, times.p90)), Some((2.0, 4.0)));
    }
}
