//! What a run's time was spent on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact::simulate::Latencies;
use tensact::telemetry::{Activity, ChipLog, Doing, Leg, Outcome, Reason, RequestTrace, Segment};
use tensact::topology::{ChipId, StageKind};

use super::event::{Asked, LeftOut};
use super::read::Record;

/// Activities of each chip that a request's waits are explained with; a server's journal keeps as many.
const ACTIVITIES_OF_A_CHIP: usize = 1 << 13;

/// A run, as far as it was read.
#[derive(Default)]
pub struct Summary {
    log: Option<ChipLog>,
    began: Option<Duration>,
    ended: Duration,
    outcomes: BTreeMap<String, u64>,
    latencies_ms: Vec<f64>,
    parts: Parts,
    latency_ms: f64,
    waits: BTreeMap<String, Wait>,
    chips: BTreeMap<ChipId, ChipShare>,
    left_out: LeftOut,
    slowest: Option<(Arc<RequestTrace>, Vec<Segment>)>,
}

/// What answered requests spent their latency on, in milliseconds; they add up to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Parts {
    /// Resizing, tokenising, normalising.
    pub preprocess_ms: f64,
    /// Waiting for a place in a pipeline.
    pub queue_ms: f64,
    /// The vision tower.
    pub vision_ms: f64,
    /// The prefix.
    pub prefix_ms: f64,
    /// Denoising.
    pub denoise_ms: f64,
    /// From chip to chip, and to the board.
    pub transfers_ms: f64,
    /// Waiting for chips that did something else, for full queues, for attempts that came to nothing.
    pub waits_ms: f64,
}

#[derive(Default)]
struct Wait {
    ms: f64,
    times: u64,
    chips: BTreeMap<ChipId, f64>,
}

/// A reason for waiting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitShare {
    /// What was waited for.
    pub what: String,
    /// The chip where most of it was.
    pub chip: Option<ChipId>,
    /// Of all requests together.
    pub ms: f64,
    /// Waits, each without a break.
    pub times: u64,
    /// Share of the latency of all requests together.
    pub share: f64,
}

/// Shares of a chip's time, from the first arrival to the last end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct ChipShare {
    pub vision: f64,
    pub prefix: f64,
    pub expert: f64,
    pub transfers: f64,
    pub stalled: f64,
    pub idle: f64,
}

impl ChipShare {
    /// Share in which it was taken.
    pub fn busy(&self) -> f64 {
        self.vision + self.prefix + self.expert + self.transfers + self.stalled
    }

    /// What most of that was.
    pub fn most(&self) -> &'static str {
        let Self { vision, prefix, expert, transfers, stalled, .. } = *self;
        let parts = [
            (vision, "the vision tower"),
            (prefix, "the prefix"),
            (expert, "the expert"),
            (transfers, "transfers"),
            (stalled, "nothing, because it was stalled"),
        ];
        parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("nothing", |(_, part)| part)
    }
}

impl Summary {
    /// Takes a record in; gives a request's critical path when it is one.
    pub fn add(&mut self, record: &Record) -> Option<Vec<Segment>> {
        match record {
            Record::Activity(activity) => self.activity(activity),
            Record::Request(request) => return Some(self.request(request)),
            Record::Asked(asked) => self.asked(asked),
            Record::LeftOut(LeftOut { activities, requests }) => {
                self.left_out.activities += activities;
                self.left_out.requests += requests;
            }
        }
        None
    }

    fn spans(&mut self, began: Duration, ended: Duration) {
        self.began = Some(self.began.map_or(began, |first| first.min(began)));
        self.ended = self.ended.max(ended);
    }

    fn log(&mut self) -> &mut ChipLog {
        self.log.get_or_insert_with(|| ChipLog::new(ACTIVITIES_OF_A_CHIP))
    }

    fn activity(&mut self, activity: &Arc<Activity>) {
        self.spans(activity.began, activity.ended);
        self.log().push(activity);
        let took = milliseconds(activity.ended - activity.began);
        for chip in &*activity.chips {
            let chip = self.chips.entry(*chip).or_default();
            *match (activity.doing, activity.stage) {
                (Doing::Pass { .. } | Doing::Layer { .. }, StageKind::Vision) => &mut chip.vision,
                (Doing::Pass { .. } | Doing::Layer { .. }, StageKind::Prefix) => &mut chip.prefix,
                (Doing::Pass { .. } | Doing::Layer { .. }, StageKind::Expert) => &mut chip.expert,
                (Doing::Stall, _) => &mut chip.stalled,
                (Doing::Send { .. } | Doing::Receive { .. } | Doing::Upload | Doing::Blocked { .. }, _) => {
                    &mut chip.transfers
                }
            } += took;
        }
    }

    fn request(&mut self, request: &Arc<RequestTrace>) -> Vec<Segment> {
        self.spans(request.arrived, request.ended);
        *self.outcomes.entry(request.outcome.to_string()).or_default() += 1;
        self.latency_ms += milliseconds(request.latency());
        let path = self.log().path(request);
        path.iter().for_each(|segment| self.wait(segment));
        if request.outcome == Outcome::Done {
            self.latencies_ms.push(milliseconds(request.latency()));
            path.iter().for_each(|segment| self.parts.add(segment));
            if self.slowest.as_ref().is_none_or(|(slowest, _)| slowest.latency() < request.latency()) {
                self.slowest = Some((Arc::clone(request), path.clone()));
            }
        }
        path
    }

    fn wait(&mut self, segment: &Segment) {
        let (what, chip) = match &segment.leg {
            Leg::Wait(Reason::Busy { chip, stage }) => {
                (format!("a chip that was busy with the {stage} of others"), Some(*chip))
            }
            Leg::Wait(Reason::Wake { chip }) => ("an idle chip to go on".to_owned(), Some(*chip)),
            Leg::Wait(Reason::Attempt(_)) => ("an attempt that came to nothing".to_owned(), None),
            Leg::Wait(reason) => (reason.to_string(), None),
            Leg::Activity(activity) => match activity.doing {
                Doing::Blocked { to } => ("a full queue".to_owned(), Some(to)),
                Doing::Stall => ("a chip that was stalled".to_owned(), activity.chips.first().copied()),
                _ => return,
            },
            Leg::Preprocess => return,
        };
        let ms = milliseconds(segment.took());
        let wait = self.waits.entry(what).or_default();
        wait.ms += ms;
        wait.times += 1;
        if let Some(chip) = chip {
            *wait.chips.entry(chip).or_default() += ms;
        }
    }

    fn asked(&mut self, asked: &Asked) {
        self.spans(asked.began, asked.began + asked.took);
        *self.outcomes.entry(asked.outcome.to_string()).or_default() += 1;
        if matches!(&*asked.outcome, "answered" | "late") {
            self.latencies_ms.push(milliseconds(asked.took));
        }
    }

    /// Requests by what became of them.
    pub fn outcomes(&self) -> &BTreeMap<String, u64> {
        &self.outcomes
    }

    /// Latencies of those that were answered, in milliseconds; none if nobody was.
    pub fn latencies(&self) -> Option<Latencies> {
        (!self.latencies_ms.is_empty()).then(|| Latencies::of(self.latencies_ms.clone()))
    }

    /// What an answered request spent its latency on, on average.
    pub fn parts(&self) -> Option<Parts> {
        let answered = self.latencies_ms.len() as f64;
        (answered > 0.0).then(|| self.parts.over(answered))
    }

    /// What was waited for, the longest first.
    pub fn waits(&self) -> Vec<WaitShare> {
        let share = |(what, wait): (&String, &Wait)| WaitShare {
            what: what.clone(),
            chip: wait.chips.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(chip, _)| *chip),
            ms: wait.ms,
            times: wait.times,
            share: wait.ms / self.latency_ms.max(f64::MIN_POSITIVE),
        };
        let mut waits: Vec<WaitShare> = self.waits.iter().map(share).collect();
        waits.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        waits
    }

    /// How long the run took, in milliseconds.
    pub fn took_ms(&self) -> f64 {
        milliseconds(self.ended.saturating_sub(self.began.unwrap_or_default()))
    }

    /// Chips that did anything.
    pub fn chips(&self) -> BTreeMap<ChipId, ChipShare> {
        let run = self.took_ms().max(f64::MIN_POSITIVE);
        let share = |(chip, ms): (&ChipId, &ChipShare)| {
            let ChipShare { vision, prefix, expert, transfers, stalled, .. } = *ms;
            let [vision, prefix, expert, transfers, stalled] =
                [vision, prefix, expert, transfers, stalled].map(|ms| ms / run);
            let share = ChipShare { vision, prefix, expert, transfers, stalled, idle: 0.0 };
            (*chip, ChipShare { idle: (1.0 - share.busy()).max(0.0), ..share })
        };
        self.chips.iter().map(share).collect()
    }

    /// What is missing in the file.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// The answered request that took longest, and what it was spent on.
    pub fn slowest(&self) -> Option<&(Arc<RequestTrace>, Vec<Segment>)> {
        self.slowest.as_ref()
    }
}

impl Parts {
    fn add(&mut self, segment: &Segment) {
        *match &segment.leg {
            Leg::Preprocess => &mut self.preprocess_ms,
            Leg::Wait(Reason::Place) => &mut self.queue_ms,
            Leg::Wait(_) => &mut self.waits_ms,
            Leg::Activity(activity) => match (activity.doing, activity.stage) {
                (Doing::Send { .. } | Doing::Receive { .. } | Doing::Upload, _) => &mut self.transfers_ms,
                (Doing::Blocked { .. } | Doing::Stall, _) => &mut self.waits_ms,
                (Doing::Pass { .. } | Doing::Layer { .. }, StageKind::Vision) => &mut self.vision_ms,
                (Doing::Pass { .. } | Doing::Layer { .. }, StageKind::Prefix) => &mut self.prefix_ms,
                (Doing::Pass { .. } | Doing::Layer { .. }, StageKind::Expert) => &mut self.denoise_ms,
            },
        } += milliseconds(segment.took());
    }

    fn over(self, count: f64) -> Self {
        Self {
            preprocess_ms: self.preprocess_ms / count,
            queue_ms: self.queue_ms / count,
            vision_ms: self.vision_ms / count,
            prefix_ms: self.prefix_ms / count,
            denoise_ms: self.denoise_ms / count,
            transfers_ms: self.transfers_ms / count,
            waits_ms: self.waits_ms / count,
        }
    }
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
