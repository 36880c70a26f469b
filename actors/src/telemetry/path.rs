//! The critical path: what a request's latency was spent on.
//!
//! Invariant *path-adds-up*: segments follow each other from arrival to end; every moment belongs to one of them. Found from
//! the end backwards: before anything began, the request was held up by whatever of its own ended last before that;
//! what lies between is a wait for the chip that was to go on, and whatever that chip did then is its reason.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use tensact_topology::{ChipId, StageKind};

use super::{Activity, Doing, Outcome, RequestTrace, journal};
use crate::clock::Moment;

/// A part of a request's latency.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// When it began, since the pipeline's start.
    pub began: Moment,
    /// When it ended.
    pub ended: Moment,
    /// What it was.
    pub leg: Leg,
}

/// What a part of a request's latency was.
#[derive(Debug, Clone, PartialEq)]
pub enum Leg {
    /// Resizing, tokenising, normalising.
    Preprocess,
    /// Something was done for it.
    Activity(Arc<Activity>),
    /// Nothing was.
    Wait(Reason),
}

/// What a request waited for.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// A place in a pipeline: all that it may hold were in flight.
    Place,
    /// An attempt that came to nothing, with this number.
    Attempt(usize),
    /// A chip that did something else.
    Busy {
        /// The chip.
        chip: ChipId,
        /// The stage that it worked on for others.
        stage: StageKind,
    },
    /// A chip that did nothing: the next stage's thread had to wake, or the host was busy.
    Wake {
        /// The chip.
        chip: ChipId,
    },
    /// Its actions were there, or its end decided, before anybody was told.
    Told,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place => f.write_str("a place in a pipeline"),
            Self::Attempt(number) => write!(f, "attempt {number}, which came to nothing"),
            Self::Busy { chip, stage } => write!(f, "chip {chip}, busy with the {stage} of others"),
            Self::Wake { chip } => write!(f, "chip {chip} to go on"),
            Self::Told => f.write_str("the scheduler"),
        }
    }
}

impl Leg {
    /// What it was for the request with this number, in words.
    pub fn words(&self, request: u64) -> String {
        match self {
            Self::Preprocess => "preprocess".into(),
            Self::Activity(activity) => activity.words(request),
            Self::Wait(reason) => format!("wait for {reason}"),
        }
    }
}

impl Segment {
    /// How long it took.
    pub fn took(&self) -> Moment {
        self.ended - self.began
    }
}

/// What each chip did, in the order in which it ended.
#[derive(Debug, Clone, Default)]
pub struct ChipLog {
    chips: BTreeMap<ChipId, VecDeque<Arc<Activity>>>,
    most: usize,
}

impl ChipLog {
    /// One that keeps the newest `most` activities of each chip.
    pub fn new(most: usize) -> Self {
        Self { chips: BTreeMap::new(), most }
    }

    /// Takes an activity down that ended after those before it.
    pub fn push(&mut self, activity: &Arc<Activity>) {
        for chip in &*activity.chips {
            journal::push(self.chips.entry(*chip).or_default(), Arc::clone(activity), self.most);
        }
    }

    /// Chips that did anything, with what they did.
    pub fn chips(&self) -> impl Iterator<Item = (ChipId, &VecDeque<Arc<Activity>>)> {
        self.chips.iter().map(|(chip, activities)| (*chip, activities))
    }

    /// What a request's latency was spent on, from its arrival to its end: segments that follow each other without a gap.
    pub fn path(&self, request: &RequestTrace) -> Vec<Segment> {
        let mut path = Backwards { request, chips: self, segments: Vec::new(), until: request.ended };
        for (index, attempt) in request.attempts.iter().enumerate().rev() {
            if index + 1 == request.attempts.len() {
                path.attempt(&attempt.activities, attempt.dispatched);
            }
            // Nothing of an attempt that came to nothing brought the request on.
            path.back_to(attempt.dispatched, || Leg::Wait(Reason::Attempt(index + 1)));
        }
        path.back_to(request.submitted, || Leg::Wait(Reason::Place));
        path.back_to(request.arrived, || Leg::Preprocess);
        path.segments.reverse();
        path.segments
    }
}

/// A path that is found from its end.
struct Backwards<'a> {
    request: &'a RequestTrace,
    chips: &'a ChipLog,
    segments: Vec<Segment>,
    /// What lies behind it is explained.
    until: Moment,
}

impl Backwards<'_> {
    /// Explains what lies between a moment and what is explained already.
    fn back_to(&mut self, began: Moment, leg: impl FnOnce() -> Leg) {
        if began >= self.until {
            return;
        }
        let (leg, ended) = (leg(), self.until);
        self.until = began;
        match self.segments.last_mut() {
            // Steps of others, one after the other, are one reason.
            Some(last) if matches!(leg, Leg::Wait(_)) && last.leg == leg => last.began = began,
            _ => self.segments.push(Segment { began, ended, leg }),
        }
    }

    /// The attempt that decided.
    fn attempt(&mut self, activities: &[Arc<Activity>], dispatched: Moment) {
        let activities = ByBegin::new(activities);
        // Who was refused waited for what it would have gone on with, which nobody knows: the chip that it was on before.
        let refused = self.request.outcome != Outcome::Done;
        let mut next = activities.last().filter(|_| refused).map(|last| goes_on_at(last)).unwrap_or_default();
        while self.until > dispatched {
            let before = activities.last_to_end(self.until);
            self.wait(&next, before.map_or(dispatched, |before| before.ended.max(dispatched)));
            let Some(before) = before else { return };
            self.back_to(before.began.max(dispatched), || Leg::Activity(Arc::clone(before)));
            next = before.chips.to_vec();
        }
    }

    /// A wait since `began` for the chips of what came next, cut where their work changes.
    fn wait(&mut self, chips: &[ChipId], began: Moment) {
        let log = self.chips;
        let until = self.until;
        let occupants =
            |chip| log.before(chip, until).take_while(|occupant| occupant.ended > began).collect::<Vec<_>>();
        // Of several chips, the one that was free last.
        let last = |chip: &&ChipId| occupants(**chip).first().map(|last| last.ended);
        let Some(&chip) = chips.iter().max_by_key(last) else {
            return self.back_to(began, || Leg::Wait(Reason::Told));
        };
        for occupant in occupants(chip) {
            self.back_to(occupant.ended.max(began), || Leg::Wait(Reason::Wake { chip }));
            let own = occupant.members.iter().any(|member| member.request == self.request.number);
            let leg = || match own {
                // It was given up in the middle of it.
                true => Leg::Activity(Arc::clone(occupant)),
                false => Leg::Wait(Reason::Busy { chip, stage: occupant.stage }),
            };
            self.back_to(occupant.began.max(began), leg);
        }
        self.back_to(began, || Leg::Wait(Reason::Wake { chip }));
    }
}

/// Where a request goes on after an activity.
fn goes_on_at(activity: &Activity) -> Vec<ChipId> {
    match activity.doing {
        Doing::Send { to, .. } | Doing::Blocked { to } => vec![to],
        _ => activity.chips.to_vec(),
    }
}

/// Activities of an attempt, in the order in which they began.
struct ByBegin<'a> {
    activities: Vec<&'a Arc<Activity>>,
    /// When the last of them and those before it ended.
    latest: Vec<Moment>,
}

impl<'a> ByBegin<'a> {
    fn new(activities: &'a [Arc<Activity>]) -> Self {
        let mut activities: Vec<_> = activities.iter().collect();
        activities.sort_by_key(|activity| activity.began);
        let mut so_far = Moment::ZERO;
        let latest = activities.iter().map(|activity| {
            so_far = so_far.max(activity.ended);
            so_far
        });
        let latest = latest.collect();
        Self { activities, latest }
    }

    fn last(&self) -> Option<&'a Arc<Activity>> {
        self.activities.last().copied()
    }

    /// Of those that began before a moment, the one that ended last before it or was under way then; of several, the one
    /// that began last.
    fn last_to_end(&self, until: Moment) -> Option<&'a Arc<Activity>> {
        let mut last: Option<&'a Arc<Activity>> = None;
        for place in (0..self.activities.partition_point(|activity| activity.began < until)).rev() {
            let end = last.map_or(Moment::ZERO, |last| last.ended.min(until));
            if last.is_some() && self.latest[place].min(until) <= end {
                break;
            }
            if last.is_none() || self.activities[place].ended.min(until) > end {
                last = Some(self.activities[place]);
            }
        }
        last
    }
}

impl ChipLog {
    /// What some chips did between two moments.
    pub(super) fn between(&self, chips: &BTreeSet<ChipId>, from: Moment, to: Moment) -> Self {
        let mut log = Self::new(self.most);
        for chip in chips {
            let done = self.before(*chip, to).take_while(|activity| activity.ended > from).cloned();
            let mut done: VecDeque<_> = done.collect();
            done.make_contiguous().reverse();
            log.chips.insert(*chip, done);
        }
        log
    }

    /// What a chip began before a moment, the latest first.
    fn before(&self, chip: ChipId, moment: Moment) -> impl Iterator<Item = &Arc<Activity>> {
        self.chips.get(&chip).into_iter().flat_map(move |activities| {
            let behind = activities.partition_point(|activity| activity.began < moment);
            activities.range(..behind).rev()
        })
    }
}
