//! Latencies explained: of runs of the simulation, and of activities that are written down here.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tensact_topology::{ChipId, Deployment, LayerRange, ModelSizes, StageKind, Variant};

use super::*;
use crate::clock::Moment;
use crate::simulate::{FaultName, PlannedFaults, Report, Scenario, Simulation, Watch};

/// All that a run took down.
#[derive(Default)]
struct Run {
    chips: ChipLog,
    requests: Vec<Arc<RequestTrace>>,
    activities: Vec<Arc<Activity>>,
}

fn run(text: &str, scenario: &Scenario, faults: &[FaultName]) -> (Report, Run) {
    let deployment = Deployment::parse("test.toml", text).unwrap();
    let sizes = ModelSizes::base(Variant::Pi05);
    let simulation = Simulation::new(&deployment, &sizes).unwrap();
    let placement = deployment.placement(&sizes, deployment.load_board().unwrap().arch()).placement;
    let faults = PlannedFaults::draw(faults, &placement, Duration::from_secs(2), 5);
    let run = Run { chips: ChipLog::new(usize::MAX), ..Run::default() };
    let run = Arc::new(Mutex::new(run));
    let taken = Arc::clone(&run);
    let journal: Listener = Box::new(move |entry| {
        let mut run = taken.lock().unwrap();
        match entry {
            Entry::Activity(activity) => {
                run.chips.push(activity);
                run.activities.push(Arc::clone(activity));
            }
            Entry::Request(request) => run.requests.push(Arc::clone(request)),
        }
    });
    let watch = Watch { journal: Some(journal), ..Watch::default() };
    let report = simulation.run(scenario, &faults, watch).unwrap();
    let run = std::mem::take(&mut *run.lock().unwrap());
    (report, run)
}

fn robots(robots: usize, rate_hz: f64, mixed: bool) -> Scenario {
    let (duration, deadline) = (Duration::from_secs(2), Some(Duration::from_millis(400)));
    Scenario { robots, rate_hz: Some(rate_hz), duration, requests: None, deadline, mixed, seed: 3 }
}

fn config(board: &str) -> String {
    std::fs::read_to_string(format!("{}/../configs/{board}.toml", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

const CHAIN: &str = r#"
board = "quietbox-bh"
checkpoint = "pi05_base"
[batching]
max_requests = 2
max_in_flight = 6
[[pipeline]]
[[pipeline.stage]]
kind = "vision"
chips = [0]
[[pipeline.stage]]
kind = "prefix"
chips = [1]
[[pipeline.stage]]
kind = "expert"
chips = [3]
"#;

/// Idle chips explain nothing in simulated time: whoever can go on goes on.
const UNEXPLAINED: Duration = Duration::from_micros(500);

fn explained(run: &Run) {
    for request in &run.requests {
        let path = run.chips.path(request);
        let mut at = request.arrived;
        for Segment { began, ended, leg } in &path {
            assert_eq!(*began, at, "{leg:?} of {}", request.trace);
            assert!(began < ended, "{leg:?} of {}", request.trace);
            let idle = matches!(leg, Leg::Wait(Reason::Wake { .. } | Reason::Told));
            assert!(
                !idle || *ended - *began <= UNEXPLAINED,
                "{:?}: {}",
                request.outcome,
                told(&path, request.number).join("\n")
            );
            at = *ended;
        }
        assert_eq!(at, request.ended, "{}", request.trace);
    }
}

fn told(path: &[Segment], request: u64) -> Vec<String> {
    let line = |Segment { began, ended, leg }: &Segment| {
        format!("{} {} {}", began.as_micros(), ended.as_micros(), leg.words(request))
    };
    path.iter().map(line).collect()
}

#[test]
fn every_latency_of_a_run_is_explained() {
    for (name, text) in [
        ("a chain", CHAIN.to_owned()),
        ("a galaxy", config("galaxy-bh")),
        ("a loudbox", config("loudbox-bh")),
        ("one chip", "board = 'p150a'\ncheckpoint = 'pi05_base'\n[[pipeline]]\nchips = [0]".to_owned()),
    ] {
        for mixed in [false, true] {
            let (report, run) = run(&text, &robots(8, 20.0, mixed), &[]);
            assert!(report.counts.done > 20 && run.requests.len() as u64 == report.counts.requests, "{name}");
            explained(&run);
        }
    }
}

#[test]
fn faults_are_reasons_too() {
    let kinds = ["crash", "stall", "slow", "error", "link"].map(|kind| kind.parse().unwrap());
    let (report, run) = run(&config("loudbox-bh"), &robots(8, 20.0, false), &kinds);
    assert!(report.counts.retried > 0);
    explained(&run);
    let legs: Vec<Leg> =
        run.requests.iter().flat_map(|request| run.chips.path(request)).map(|segment| segment.leg).collect();
    assert!(legs.iter().any(|leg| matches!(leg, Leg::Wait(Reason::Attempt(1)))));
    assert!(run.activities.iter().any(|activity| activity.doing == Doing::Stall));
}

#[test]
fn everything_that_a_request_needs_is_taken_down() {
    let scenario = Scenario { rate_hz: None, requests: Some(1), ..robots(1, 1.0, false) };
    let (report, run) = run(CHAIN, &scenario, &[]);
    assert_eq!((report.counts.done, run.requests.len()), (1, 1));
    let request = &run.requests[0];
    let of = |stage: StageKind, name: &str| {
        let alike = |activity: &&Arc<Activity>| (activity.stage, activity.doing.name()) == (stage, name);
        request.activities().filter(alike).count()
    };
    let sizes = ModelSizes::base(Variant::Pi05);
    assert_eq!(of(StageKind::Vision, "pass"), 1);
    assert_eq!(of(StageKind::Vision, "send"), 1);
    assert_eq!(of(StageKind::Prefix, "receive"), 1);
    assert_eq!(of(StageKind::Prefix, "layer"), sizes.vlm.layers);
    assert_eq!(of(StageKind::Prefix, "send"), sizes.vlm.layers);
    assert_eq!(of(StageKind::Expert, "receive"), sizes.vlm.layers);
    // The first step follows layer by layer; each of the others is a pass.
    assert_eq!(of(StageKind::Expert, "layer"), sizes.vlm.layers);
    assert_eq!(of(StageKind::Expert, "pass"), sizes.steps - 1);
    let steps = request.activities().filter(|activity| activity.doing.computes());
    let mut steps: Vec<usize> = steps.filter_map(|activity| activity.members[0].step).collect();
    steps.dedup();
    assert_eq!(steps, (0..sizes.steps).collect::<Vec<_>>());
    let sent = request.activities().filter_map(|activity| match activity.doing {
        Doing::Send { to, bytes, transport } => Some((activity.chips[0], to, bytes, transport)),
        _ => None,
    });
    let over: Vec<_> = sent.collect();
    assert!(over.iter().all(|(.., bytes, transport)| *bytes > 0 && *transport != Transport::Local));
    assert_eq!((over[0].0, over[0].1), (ChipId(0), ChipId(1)));
}

/// An activity of some requests on a chip, in milliseconds.
fn activity(chip: u32, began: u64, ended: u64, requests: &[u64]) -> Arc<Activity> {
    let members = requests.iter().map(|request| Member {
        trace: TraceId::of_number(*request),
        request: *request,
        attempt: 1,
        step: None,
    });
    Arc::new(Activity {
        pipeline: 0,
        slice: 0,
        stage: StageKind::Expert,
        layers: LayerRange::one(0),
        chips: [ChipId(chip)].into(),
        doing: Doing::Pass { cameras: 1 },
        began: Moment::from_millis(began),
        ended: Moment::from_millis(ended),
        members: members.collect(),
    })
}

/// A request of these activities that came at 0 and was sent on at 5.
fn request(number: u64, activities: Vec<Arc<Activity>>, ended: u64) -> RequestTrace {
    let ms = Moment::from_millis;
    RequestTrace {
        trace: TraceId::of_number(number),
        span: None,
        number,
        robot: None,
        arrived: ms(0),
        submitted: ms(2),
        deadline: None,
        attempts: vec![Attempt { pipeline: 0, dispatched: ms(5), activities }],
        ended: ms(ended),
        outcome: Outcome::Done,
    }
}

#[test]
fn a_wait_names_what_the_chip_did_instead() {
    let mine = [activity(1, 6, 10, &[7]), activity(2, 30, 40, &[7])];
    let mut chips = ChipLog::new(100);
    for other in [activity(2, 1, 12, &[1]), activity(2, 12, 20, &[2, 3]), activity(2, 20, 29, &[2, 3])] {
        chips.push(&other);
    }
    mine.iter().for_each(|activity| chips.push(activity));
    let path = chips.path(&request(7, mine.to_vec(), 41));
    assert_eq!(
        told(&path, 7),
        [
            "0 2000 preprocess",
            "2000 5000 wait for a place in a pipeline",
            "5000 6000 wait for chip 1 to go on",
            "6000 10000 expert layers 0..1 on chip 1",
            "10000 29000 wait for chip 2, busy with the expert of others",
            "29000 30000 wait for chip 2 to go on",
            "30000 40000 expert layers 0..1 on chip 2",
            "40000 41000 wait for the scheduler",
        ]
    );
}

#[test]
fn of_what_runs_at_the_same_time_the_last_to_end_counts() {
    let mine = [activity(1, 5, 9, &[7]), activity(2, 5, 20, &[7]), activity(3, 20, 30, &[7])];
    let mut chips = ChipLog::new(100);
    mine.iter().for_each(|activity| chips.push(activity));
    let path = chips.path(&request(7, mine.to_vec(), 30));
    let on = path.iter().filter_map(|segment| match &segment.leg {
        Leg::Activity(activity) => Some(activity.chips[0].0),
        _ => None,
    });
    assert_eq!(on.collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn of_several_chips_the_one_that_was_free_last_is_waited_for() {
    let both = Activity { chips: [ChipId(1), ChipId(2)].into(), ..(*activity(1, 20, 30, &[7])).clone() };
    let both = Arc::new(both);
    let mut chips = ChipLog::new(100);
    for activity in [activity(1, 2, 8, &[1]), activity(2, 2, 20, &[2]), Arc::clone(&both)] {
        chips.push(&activity);
    }
    let path = chips.path(&request(7, vec![both], 30));
    let told = told(&path, 7);
    assert_eq!(told[2], "5000 20000 wait for chip 2, busy with the expert of others", "{told:?}");
}

#[test]
fn what_ended_after_the_request_is_told_as_its_own() {
    let last = activity(1, 5, 12, &[7, 8]);
    let mut chips = ChipLog::new(100);
    let mine = activity(1, 2, 5, &[7]);
    [&mine, &last].into_iter().for_each(|activity| chips.push(activity));
    let given_up = RequestTrace { outcome: Outcome::Expired, ..request(7, vec![mine], 9) };
    let told = told(&chips.path(&given_up), 7);
    assert_eq!(told.last().unwrap(), "5000 9000 expert layers 0..1 on chip 1");
}

#[test]
fn what_a_request_was_in_the_middle_of_is_told() {
    let journal = Journal::new(crate::clock::Clock::real());
    let ms = Moment::from_millis;
    let trace = TraceId::of_number(7);
    let submitted =
        Submitted { trace, span: Some(7), robot: None, arrived: ms(0), at: ms(1), deadline: None };
    journal.submitted(7, submitted);
    journal.dispatched(7, 0, ms(2));
    journal.acted((*activity(1, 2, 5, &[7])).clone());
    journal.began((*activity(2, 5, 5, &[7, 8])).clone());
    journal.ended(7, Outcome::Expired, ms(9));
    let given_up = journal.asked_from(7).unwrap();
    assert_eq!(
        told(&journal.path(&given_up), 7),
        [
            "0 1000 preprocess",
            "1000 2000 wait for a place in a pipeline",
            "2000 5000 expert layers 0..1 on chip 1",
            "5000 9000 expert layers 0..1 on chip 2",
        ]
    );
    // It goes on for the other.
    journal.acted((*activity(2, 5, 12, &[7, 8])).clone());
    assert_eq!(given_up.attempts[0].activities.len(), 2);
}

#[test]
fn what_requests_ask_for_does_not_fill_the_memory() {
    let journal = Journal::new(crate::clock::Clock::real());
    for number in 0..4 {
        let at = Moment::from_millis(number);
        let trace = TraceId::of_number(number);
        let submitted = Submitted { trace, span: Some(number), robot: None, arrived: at, at, deadline: None };
        journal.submitted(number, submitted);
        journal.dispatched(number, 0, at);
        for _ in 0..100_000 {
            journal.acted((*activity(0, number, number + 1, &[number])).clone());
        }
        journal.ended(number, Outcome::Done, at + Duration::from_millis(1));
    }
    let kept: Vec<u64> = journal.requests().iter().map(|request| request.number).collect();
    assert_eq!(kept, [2, 3]);
}

#[test]
fn a_journal_keeps_the_newest_and_says_what_is_new() {
    let journal = Journal::new(crate::clock::Clock::real());
    let mut cursor = journal.end();
    for number in 0..5000 {
        let at = Moment::from_millis(number);
        let trace = TraceId::of_number(number);
        journal.submitted(
            number,
            Submitted { trace, span: Some(number), robot: None, arrived: at, at, deadline: None },
        );
        journal.dispatched(number, 0, at);
        journal.acted((*activity(0, number, number + 1, &[number])).clone());
        journal.ended(number, Outcome::Done, at + Duration::from_millis(1));
    }
    let news = journal.since(&mut cursor, 10, 20);
    assert_eq!((news.activities.len(), news.activities_left_out), (10, 4990));
    assert_eq!((news.requests.len(), news.requests_left_out), (20, 4980));
    assert_eq!(news.requests[19].number, 4999);
    assert!(journal.since(&mut cursor, 10, 20).requests.is_empty());
    let newest = journal.asked_from(4999).unwrap();
    assert_eq!(newest.attempts[0].activities.len(), 1);
    assert_eq!(journal.path(&newest).len(), 1);
    assert!(journal.asked_from(0).is_none());
    assert_eq!(journal.requests().len(), 4096);
}

#[test]
fn names_are_read_as_they_are_written() {
    let trace = TraceId::of_number(3);
    assert_eq!(trace.to_string().parse(), Ok(trace));
    assert!(trace.to_string().ends_with(&trace.label()) && trace.label().len() == 8);
    for wrong in [
        "",
        "0",
        "00000000000000000000000000000000",
        "0000000000000000000000000000000g",
        "+0000000000000000000000000000001",
    ] {
        assert!(wrong.parse::<TraceId>().is_err(), "{wrong}");
    }
}
