//! What a pipeline takes down, and keeps for a while.
//!
//! Invariant *bounded*: a journal keeps the newest activities and requests, as many as it has room for, whatever requests ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tensact_topology::ChipId;

use super::{Activity, Attempt, ChipLog, Doing, Member, Outcome, RequestTrace, Segment, TraceId};
use crate::clock::{Clock, Moment};

/// Activities that are kept for everybody, and for each chip. A board of 32 chips at full load has some ten thousand in a second.
const ACTIVITIES: usize = 1 << 16;
const ACTIVITIES_OF_A_CHIP: usize = 1 << 13;
/// Requests that are kept, and activities of all requests.
const REQUESTS: usize = 1 << 12;
const ACTIVITIES_OF_REQUESTS: usize = 1 << 18;
/// Requests that may be under way; more are not traced.
const OPEN: usize = 1 << 16;

/// What happened in a pipeline, as far back as there is room.
pub struct Journal {
    clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    open: BTreeMap<u64, Open>,
    requests: VecDeque<Arc<RequestTrace>>,
    by_span: HashMap<u64, Arc<RequestTrace>>,
    /// Activities of requests, under way and ended.
    held: usize,
    /// What chips are in the middle of, by pipeline, slice and first chip.
    running: BTreeMap<(usize, usize, Option<ChipId>), Arc<Activity>>,
    activities: VecDeque<Arc<Activity>>,
    chips: ChipLog,
    /// Entries so far.
    counts: Cursor,
    listeners: Vec<Listener>,
}

/// Gets everything that is taken down.
pub type Listener = Box<dyn FnMut(Entry<'_>) + Send>;

/// A request that has not ended.
struct Open {
    submitted: Submitted,
    attempts: Vec<Attempt>,
}

/// A request that was handed in.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) trace: TraceId,
    pub(crate) span: Option<u64>,
    pub(crate) robot: Option<Arc<str>>,
    pub(crate) arrived: Moment,
    pub(crate) at: Moment,
    pub(crate) deadline: Option<Moment>,
}

/// Something new in a journal.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// An activity has ended.
    Activity(&'a Arc<Activity>),
    /// A request has ended.
    Request(&'a Arc<RequestTrace>),
}

/// How far somebody has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    activities: u64,
    requests: u64,
}

/// What is new since somebody last looked.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// Activities, by when they ended.
    pub activities: Vec<Arc<Activity>>,
    /// Activities that were too many to be kept or wanted.
    pub activities_left_out: u64,
    /// Requests that have ended, in order.
    pub requests: Vec<Arc<RequestTrace>>,
    /// Requests that were too many.
    pub requests_left_out: u64,
}

impl Journal {
    /// An empty one of a pipeline whose time is that of this clock.
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        let inner = Inner {
            open: BTreeMap::new(),
            requests: VecDeque::new(),
            by_span: HashMap::new(),
            held: 0,
            running: BTreeMap::new(),
            activities: VecDeque::new(),
            chips: ChipLog::new(ACTIVITIES_OF_A_CHIP),
            counts: Cursor::default(),
            listeners: Vec::new(),
        };
        Arc::new(Self { clock, inner: Mutex::new(inner) })
    }

    /// When the pipeline was started, from which its moments are counted, by what the machine's clock says now: it may have
    /// been set since.
    pub fn started(&self) -> SystemTime {
        SystemTime::now().checked_sub(self.clock.now()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Time since the pipeline was started.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Calls somebody for everything that is taken down from now on. It must be quick and must not use the journal: chips
    /// wait for it.
    pub fn listen(&self, listener: Listener) {
        self.inner().listeners.push(listener);
    }

    /// The request that was asked from a span, if it has ended and is still kept.
    pub fn asked_from(&self, span: u64) -> Option<Arc<RequestTrace>> {
        self.inner().by_span.get(&span).cloned()
    }

    /// Requests that have ended and are still kept, the newest last.
    pub fn requests(&self) -> Vec<Arc<RequestTrace>> {
        self.inner().requests.iter().cloned().collect()
    }

    /// What is new since `cursor`, at most so many of each, the newest; moves the cursor on.
    pub fn since(&self, cursor: &mut Cursor, most_activities: usize, most_requests: usize) -> News {
        let inner = self.inner();
        let (activities, activities_left_out) = newest(
            &inner.activities,
            inner.counts.activities.saturating_sub(cursor.activities),
            most_activities,
        );
        let (requests, requests_left_out) =
            newest(&inner.requests, inner.counts.requests.saturating_sub(cursor.requests), most_requests);
        *cursor = inner.counts;
        News { activities, activities_left_out, requests, requests_left_out }
    }

    /// Where reading goes on from what is new from now on.
    pub fn end(&self) -> Cursor {
        self.inner().counts
    }

    /// What a request's latency was spent on, from its arrival to its end: segments that follow each other without a gap.
    pub fn path(&self, request: &RequestTrace) -> Vec<Segment> {
        let from = request.attempts.last().map_or(request.ended, |attempt| attempt.dispatched);
        let mut chips = BTreeSet::new();
        for activity in request.activities() {
            chips.extend(activity.chips.iter().copied());
            if let Doing::Send { to, .. } | Doing::Blocked { to } = activity.doing {
                chips.insert(to);
            }
        }
        // Chips wait for whoever looks, so it looks no longer than it must.
        let log = {
            let inner = self.inner();
            let mut log = inner.chips.between(&chips, from, request.ended);
            for running in inner.running.values().filter(|running| running.began < request.ended) {
                log.push(&Arc::new(Activity { ended: request.ended, ..(**running).clone() }));
            }
            log
        };
        log.path(request)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What is taken down is whole whoever panicked beside it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn submitted(&self, request: u64, submitted: Submitted) {
        let open = &mut self.inner().open;
        if open.len() < OPEN {
            open.insert(request, Open { submitted, attempts: Vec::new() });
        }
    }

    pub(crate) fn dispatched(&self, request: u64, pipeline: usize, at: Moment) {
        if let Some(open) = self.inner().open.get_mut(&request) {
            open.attempts.push(Attempt { pipeline, dispatched: at, activities: Vec::new() });
        }
    }

    /// A slice's chips have begun with something.
    pub(crate) fn began(&self, activity: Activity) {
        self.inner().running.insert(key(&activity), Arc::new(activity));
    }

    /// A slice has failed in the middle of something.
    pub(crate) fn stopped(&self, pipeline: usize, slice: usize) {
        self.inner().running.retain(|key, _| (key.0, key.1) != (pipeline, slice));
    }

    pub(crate) fn acted(&self, activity: Activity) {
        let activity = Arc::new(activity);
        let mut inner = self.inner();
        let inner = &mut *inner;
        if activity.doing.computes() || activity.doing == Doing::Stall {
            inner.running.remove(&key(&activity));
        }
        for Member { request, attempt, .. } in &activity.members {
            let attempts = inner.open.get_mut(request).map(|open| &mut open.attempts);
            if let Some(attempt) = attempts.and_then(|attempts| attempts.get_mut(*attempt as usize - 1))
                && inner.held < 2 * ACTIVITIES_OF_REQUESTS
            {
                attempt.activities.push(Arc::clone(&activity));
                inner.held += 1;
            }
        }
        inner.chips.push(&activity);
        inner.listeners.iter_mut().for_each(|listener| listener(Entry::Activity(&activity)));
        inner.counts.activities += 1;
        push(&mut inner.activities, activity, ACTIVITIES);
    }

    pub(crate) fn ended(&self, request: u64, outcome: Outcome, at: Moment) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let Some(Open { submitted, mut attempts }) = inner.open.remove(&request) else { return };
        let Submitted { trace, span, robot, arrived, at: submitted, deadline } = submitted;
        // What it was in the middle of goes on for others, or ends for nobody.
        for running in inner.running.values() {
            let Some(member) = running.members.iter().find(|member| member.request == request) else {
                continue;
            };
            if let Some(attempt) = attempts.get_mut(member.attempt as usize - 1) {
                attempt.activities.push(Arc::new(Activity { ended: at, ..(**running).clone() }));
                inner.held += 1;
            }
        }
        let ended = RequestTrace {
            trace,
            span,
            number: request,
            robot,
            arrived,
            submitted,
            deadline,
            attempts,
            ended: at,
            outcome,
        };
        let ended = Arc::new(ended);
        inner.listeners.iter_mut().for_each(|listener| listener(Entry::Request(&ended)));
        inner.counts.requests += 1;
        inner.by_span.extend(span.map(|span| (span, Arc::clone(&ended))));
        inner.requests.push_back(ended);
        while inner.requests.len() > REQUESTS || inner.held > ACTIVITIES_OF_REQUESTS {
            let Some(oldest) = inner.requests.pop_front() else { break };
            inner.held = inner.held.saturating_sub(oldest.activities().count());
            if let Some(span) = oldest.span {
                inner.by_span.remove(&span);
            }
        }
    }
}

/// Where an activity is under way.
fn key(activity: &Activity) -> (usize, usize, Option<ChipId>) {
    (activity.pipeline, activity.slice, activity.chips.first().copied())
}

/// Adds to a queue that holds `most`; the oldest makes room.
pub(super) fn push<T>(queue: &mut VecDeque<T>, value: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(value);
}

/// The newest of `new` values, at most `most`, and how many are missing.
fn newest<T: Clone>(queue: &VecDeque<T>, new: u64, most: usize) -> (Vec<T>, u64) {
    let count = usize::try_from(new).unwrap_or(usize::MAX).min(queue.len()).min(most);
    (queue.range(queue.len() - count..).cloned().collect(), new - count as u64)
}
