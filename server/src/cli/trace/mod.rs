//! `tensact trace`: what a trace file says about a run, and about one request.

mod print;
mod recorded;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use miette::miette;
use serde::Serialize;
use tensact::simulate::Latencies;
use tensact::telemetry::{Leg, Reason, RequestTrace, Segment};
use tensact::topology::ChipId;
use tensact_server::trace::{
    ChipShare, Ending, LeftOut, Parts, Record, Row, Run, Subject, Summary, TraceFile, WaitShare, rows,
};

use super::{print_json, told, warn};
pub(super) use recorded::{Recorded, TraceOut, finish};

/// Requests that are named when several could be meant.
const NAMED: usize = 8;

/// Say where the milliseconds of a run went, and those of one request.
///
/// Reads a file that `--trace-out` of `simulate`, `serve`, `infer` or `bench-serve` wrote. The same file opens in
/// ui.perfetto.dev.
#[derive(Args)]
#[command(
    name = "trace",
    after_help = "Examples:
  tensact simulate configs/galaxy-bh.toml --robots 64 --rate 10 --duration 2s --trace-out run.json
  tensact trace run.json                       # the run, and the slowest of its requests
  tensact trace run.json --request 3f2a        # the request whose trace id begins so"
)]
pub(super) struct Trace {
    /// The trace file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show the request whose trace id begins or ends with these digits, instead of the run.
    #[arg(long, value_name = "TRACE_ID", value_parser = digits)]
    request: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The beginning of a trace id.
fn digits(text: &str) -> Result<String, String> {
    if (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("expected 1 to 32 hexadecimal digits, the beginning or end of a trace id".into())
    }
}

/// What `--json` prints of a run.
#[derive(Serialize)]
struct RunAnswer<'a> {
    run: &'a Run,
    complete: bool,
    left_out: LeftOut,
    took_ms: f64,
    outcomes: &'a BTreeMap<String, u64>,
    latency_ms: Option<Latencies>,
    parts_ms: Option<Parts>,
    waits: Vec<WaitShare>,
    chips: BTreeMap<ChipId, ChipShare>,
    bottleneck: Option<String>,
    slowest: Option<RequestAnswer>,
}

/// What `--json` prints of a request.
#[derive(Serialize)]
struct RequestAnswer {
    trace_id: String,
    number: u64,
    robot: Option<String>,
    outcome: &'static str,
    latency_ms: f64,
    path: Vec<Step>,
    rows: Vec<Row>,
}

/// A segment of a path.
#[derive(Serialize)]
struct Step {
    from_ms: f64,
    to_ms: f64,
    ms: f64,
    /// `preprocess`, `wait`, or what chips did.
    kind: &'static str,
    /// Why it waited: `place`, `attempt`, `busy`, `wake` or `told`.
    reason: Option<&'static str>,
    what: String,
}

/// A request and what its latency was spent on.
type Path = (Arc<RequestTrace>, Vec<Segment>);

impl Trace {
    pub(super) fn run(self) -> miette::Result<()> {
        let mut file = TraceFile::open(&self.file).map_err(told)?;
        let mut summary = Summary::default();
        let mut wanted = Wanted::new(self.request.as_deref());
        for record in file.by_ref() {
            let record = record.map_err(told)?;
            let path = summary.add(&record);
            if let (Record::Request(request), Some(path)) = (&record, path) {
                wanted.look_at(request, path);
            }
        }
        if let Some(Ending::Cut { line }) = file.ending() {
            let file = self.file.display();
            warn(&format!(
                "{file} ends at line {line} without its end: the run was cut off, or is still under way"
            ));
        }
        let LeftOut { activities, requests } = summary.left_out();
        if activities + requests > 0 {
            warn(&format!(
                "{activities} activities and {requests} requests were left out because the disk was too slow: waits may \
                 be explained wrongly"
            ));
        }
        match &self.request {
            Some(digits) => self.show_requests(&wanted.found(digits, &self.file, file.run())?),
            None => self.show_run(&file, &summary),
        }
    }

    fn show_requests(&self, paths: &[Path]) -> miette::Result<()> {
        if self.json {
            let answers: Vec<RequestAnswer> = paths.iter().map(RequestAnswer::of).collect();
            // Clients may give a name to several requests.
            return match &answers[..] {
                [only] => print_json(only),
                several => print_json(&several),
            };
        }
        paths.iter().for_each(|(request, path)| print::request("request", request, &rows(request, path)));
        Ok(())
    }

    fn show_run(&self, file: &TraceFile, summary: &Summary) -> miette::Result<()> {
        let slowest = summary.slowest();
        if self.json {
            return print_json(&RunAnswer {
                run: file.run(),
                complete: matches!(file.ending(), Some(Ending::Whole(_))),
                left_out: summary.left_out(),
                took_ms: summary.took_ms(),
                outcomes: summary.outcomes(),
                latency_ms: summary.latencies(),
                parts_ms: summary.parts(),
                waits: summary.waits(),
                chips: summary.chips(),
                bottleneck: print::bottleneck(summary),
                slowest: slowest.map(RequestAnswer::of),
            });
        }
        print::run(file.run(), summary);
        if let Some((request, path)) = slowest {
            print::request("slowest", request, &rows(request, path));
        }
        Ok(())
    }
}

impl RequestAnswer {
    fn of((request, path): &Path) -> Self {
        let since =
            |moment: std::time::Duration| (moment.saturating_sub(request.arrived)).as_secs_f64() * 1e3;
        let step = |segment: &Segment| {
            let (kind, reason) = match &segment.leg {
                Leg::Preprocess => ("preprocess", None),
                Leg::Activity(activity) => (activity.doing.name(), None),
                Leg::Wait(reason) => ("wait", Some(short(reason))),
            };
            let what = segment.leg.words(request.number);
            let (from_ms, to_ms) = (since(segment.began), since(segment.ended));
            Step { from_ms, to_ms, ms: segment.took().as_secs_f64() * 1e3, kind, reason, what }
        };
        Self {
            trace_id: request.trace.to_string(),
            number: request.number,
            robot: request.robot.as_deref().map(str::to_owned),
            outcome: request.outcome.name(),
            latency_ms: request.latency().as_secs_f64() * 1e3,
            path: path.iter().map(step).collect(),
            rows: rows(request, path),
        }
    }
}

fn short(reason: &Reason) -> &'static str {
    match reason {
        Reason::Place => "place",
        Reason::Attempt(_) => "attempt",
        Reason::Busy { .. } => "busy",
        Reason::Wake { .. } => "wake",
        Reason::Told => "told",
    }
}

/// The requests that somebody may mean.
struct Wanted<'a> {
    digits: Option<&'a str>,
    found: Vec<Path>,
    count: u64,
    of: u64,
}

impl<'a> Wanted<'a> {
    fn new(digits: Option<&'a str>) -> Self {
        Self { digits, found: Vec::new(), count: 0, of: 0 }
    }

    fn look_at(&mut self, request: &Arc<RequestTrace>, path: Vec<Segment>) {
        self.of += 1;
        if self.digits.is_some_and(|digits| request.trace.is_called(digits)) {
            self.count += 1;
            if self.found.len() < NAMED {
                self.found.push((Arc::clone(request), path));
            }
        }
    }

    /// Those that are meant: one, unless several have the same name.
    fn found(self, digits: &str, file: &std::path::Path, run: &Run) -> miette::Result<Vec<Path>> {
        let Self { found, count, of, .. } = self;
        let file = file.display();
        if matches!(run.subject, Subject::Robots { .. }) {
            return Err(miette!(
                help = "write one on the server's side: `tensact serve … --trace-out FILE`",
                "{file} holds what robots saw of a server: it knows nothing of chips, so it has no path of any request"
            ));
        }
        let Some((first, _)) = found.first() else {
            return Err(miette!(
                "{file}: no trace id begins or ends with {digits}; it holds {of} requests that have ended"
            ));
        };
        if found.iter().any(|(request, _)| request.trace != first.trace) {
            let names: Vec<String> = found.iter().map(|(request, _)| request.trace.to_string()).collect();
            let more = if count as usize > names.len() { ", …" } else { "" };
            let names = names.join(", ");
            return Err(miette!(
                "{file}: {count} trace ids begin or end with {digits}, give more digits: {names}{more}"
            ));
        }
        Ok(found)
    }
}
