//! The lines of a trace file.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tensact::telemetry::{Activity, Doing, Member, Outcome, RequestTrace, TraceId};
use tensact::topology::{ChipId, LayerRange, Placement, StageKind};

/// Grows when older readers would misunderstand a file.
pub(super) const FORMAT: u32 = 1;

/// Tracks are threads of processes, as far as the format knows.
pub(super) const BOARD: u32 = 1;
pub(super) const REQUESTS: u32 = 2;
pub(super) const ROBOTS: u32 = 3;
/// Track of chip 0 and of robot 0. Thread 0 is special to viewers, and a thread with the number of its process is its main one.
pub(super) const FIRST_TRACK: u32 = 1000;

pub(super) const RUN: &str = "tensact";
pub(super) const END: &str = "tensact end";
pub(super) const ACTIVITY: &str = "activity";
pub(super) const SHARED: &str = "shared";
pub(super) const HELD: &str = "held";
pub(super) const REQUEST: &str = "request";
pub(super) const ARROW: &str = "arrow";
pub(super) const LEFT_OUT: &str = "left out";
pub(super) const CLIENT: &str = "client";
pub(super) const PART: &str = "part";

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Event<'a, A> {
    pub(super) ph: Cow<'a, str>,
    pub(super) name: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) cat: Cow<'a, str>,
    /// Of an arrow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<Cow<'a, str>>,
    /// Of what begins and ends on a track of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id2: Option<Id<'a>>,
    pub(super) pid: u32,
    pub(super) tid: u32,
    /// Microseconds.
    pub(super) ts: f64,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dur: Option<f64>,
    /// What an arrow ends in: the slice around it.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) bp: Cow<'a, str>,
    /// How far an instant reaches.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub(super) s: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) args: Option<A>,
}

/// A name within a process: viewers would draw what has a name for all processes beside them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Id<'a> {
    pub(super) local: Cow<'a, str>,
}

/// An event without a payload.
pub(super) type Bare<'a> = Event<'a, ()>;

/// As much of a line as tells what it is.
#[derive(Deserialize)]
pub(super) struct Head<'a> {
    #[serde(borrow)]
    pub(super) ph: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) cat: Cow<'a, str>,
}

impl<'a, A> Event<'a, A> {
    /// An event of a process as a whole, at its start.
    pub(super) fn new(ph: &'a str, name: impl Into<Cow<'a, str>>, pid: u32) -> Self {
        let (cat, bp, s) = ("".into(), "".into(), "".into());
        Self {
            ph: ph.into(),
            name: name.into(),
            cat,
            id: None,
            id2: None,
            pid,
            tid: 0,
            ts: 0.0,
            dur: None,
            bp,
            s,
            args: None,
        }
    }
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Version of the format.
    pub format: u32,
    /// Version of Tensact.
    pub version: String,
    /// What was run, such as `tensact simulate`.
    pub command: String,
    /// Whose side it is.
    #[serde(flatten)]
    pub subject: Subject,
}

/// Who was watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Subject {
    /// The chips of a board and the requests they work on.
    Board {
        /// Its name.
        board: String,
        /// What its chips are, for people: `emulated in simulated time`.
        chips_are: String,
        /// Chips that hold anything.
        chips: Vec<Held>,
    },
    /// Robots that ask a server: nothing is known of chips.
    Robots {
        /// The server.
        server: String,
        /// How many.
        robots: usize,
    },
}

/// What a chip holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The chip.
    pub chip: ChipId,
    /// Its slices, for people: `vision 0..27, prefix 0..9`.
    pub slices: String,
}

impl Run {
    /// A run of a command.
    pub fn new(command: &str, subject: Subject) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, version, command: command.to_owned(), subject }
    }
}

impl Subject {
    /// A board on which this is placed.
    pub fn board(board: &str, chips_are: &str, placement: &Placement) -> Self {
        let slices = || placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices);
        let mut chips: Vec<ChipId> = slices().flat_map(|slice| slice.chips.iter().copied()).collect();
        chips.sort_unstable();
        chips.dedup();
        let held = |chip| {
            let here = slices().filter(|slice| slice.chips.contains(&chip));
            let names = here.map(|slice| format!("{} {}", slice.stage, slice.layers));
            Held { chip, slices: names.collect::<Vec<_>>().join(", ") }
        };
        let chips = chips.into_iter().map(held).collect();
        Self::Board { board: board.to_owned(), chips_are: chips_are.to_owned(), chips }
    }
}

/// Things that stand in a file, or that it lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Activities.
    pub activities: u64,
    /// Requests.
    pub requests: u64,
}

/// How much was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Activities that stand in the file.
    pub activities: u64,
    /// Requests that stand in it.
    pub requests: u64,
    /// What came faster than it could be written.
    pub left_out: LeftOut,
}

/// Payload of [`ACTIVITY`] and [`HELD`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ActivityArgs {
    #[serde(flatten)]
    pub(super) doing: Doing,
    pub(super) pipeline: usize,
    pub(super) slice: usize,
    pub(super) stage: StageKind,
    pub(super) layers: LayerRange,
    pub(super) chips: Vec<ChipId>,
    /// For people; the members tell.
    #[serde(default)]
    pub(super) batch: usize,
    pub(super) members: Vec<MemberArgs>,
    /// When it ended, where the line does not say how long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct MemberArgs {
    trace: TraceId,
    request: u64,
    attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
}

impl From<&Member> for MemberArgs {
    fn from(&Member { trace, request, attempt, step }: &Member) -> Self {
        Self { trace, request, attempt, step }
    }
}

impl From<MemberArgs> for Member {
    fn from(MemberArgs { trace, request, attempt, step }: MemberArgs) -> Self {
        Self { trace, request, attempt, step }
    }
}

impl From<&Activity> for ActivityArgs {
    fn from(activity: &Activity) -> Self {
        Self {
            doing: activity.doing,
            pipeline: activity.pipeline,
            slice: activity.slice,
            stage: activity.stage,
            layers: activity.layers,
            chips: activity.chips.to_vec(),
            batch: activity.members.len(),
            members: activity.members.iter().map(MemberArgs::from).collect(),
            ended: activity.chips.is_empty().then(|| micros(activity.ended)),
        }
    }
}

/// Payload of the outermost `b` of a [`REQUEST`]. Times are microseconds, as in the lines.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestArgs {
    pub(super) trace: TraceId,
    pub(super) number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) robot: Option<String>,
    pub(super) outcome: Outcome,
    pub(super) submitted: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deadline: Option<f64>,
    pub(super) attempts: Vec<AttemptArgs>,
    pub(super) ended: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AttemptArgs {
    pub(super) pipeline: usize,
    pub(super) dispatched: f64,
}

impl From<&RequestTrace> for RequestArgs {
    fn from(request: &RequestTrace) -> Self {
        let attempts = request.attempts.iter().map(|attempt| AttemptArgs {
            pipeline: attempt.pipeline,
            dispatched: micros(attempt.dispatched),
        });
        Self {
            trace: request.trace,
            number: request.number,
            robot: request.robot.as_deref().map(str::to_owned),
            outcome: request.outcome,
            submitted: micros(request.submitted),
            deadline: request.deadline.map(micros),
            attempts: attempts.collect(),
            ended: micros(request.ended),
        }
    }
}

/// What a robot saw of an observation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The robot.
    pub robot: usize,
    /// When it sent the observation, since the run's start, in seconds.
    #[serde(skip)]
    pub began: Duration,
    /// How long it waited.
    #[serde(skip)]
    pub took: Duration,
    /// `answered`, `late`, `refused`, `bad answer` or `unanswered`.
    pub outcome: Cow<'static, str>,
    /// The server's name of the request, if it says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// What the server says it spent its time on, one after the other, in milliseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<(Cow<'static, str>, f64)>,
}

/// Microseconds of a moment.
pub(super) fn micros(moment: Duration) -> f64 {
    moment.as_nanos() as f64 / 1e3
}

/// Longest time that a file may tell of: some thirty years.
const MICROS_MAX: f64 = 1e15;

/// The moment of these microseconds.
pub(super) fn moment(micros: f64) -> Result<Duration, String> {
    if (0.0..=MICROS_MAX).contains(&micros) {
        Ok(Duration::from_nanos((micros * 1e3).round() as u64))
    } else {
        Err(format!("{micros} is no time: expected microseconds from 0 to {MICROS_MAX}"))
    }
}
