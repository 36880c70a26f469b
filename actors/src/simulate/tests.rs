//! The emulated boards against their bounds, and the whole system under faults.

use super::*;
use crate::scheduler::Counts;
use tensact_topology::{Calibration, CostModel, Variant};

/// A policy's deployment from text.
fn simulation(text: &str) -> Simulation {
    let deployment = Deployment::parse("test.toml", text).unwrap();
    Simulation::new(&deployment, &ModelSizes::base(Variant::Pi05)).unwrap_or_else(|error| panic!("{error}"))
}

const CHAIN: &str = r#"
board = "quietbox-bh"
checkpoint = "pi05_base"
[batching]
max_requests = 1
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

fn closed_loop(robots: usize, requests: u64) -> Scenario {
    Scenario {
        robots,
        rate_hz: None,
        duration: Duration::from_secs(3600),
        requests: Some(requests),
        deadline: None,
        mixed: false,
        seed: 1,
    }
}

fn config(board: &str) -> String {
    std::fs::read_to_string(format!("{}/../configs/{board}.toml", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// 4 vision chips, 18 prefix chips that snake through three columns, 6 expert chips down the fourth, in a ring.
fn layout_28() -> String {
    let mut text = String::from("board = \"galaxy-bh\"\ncheckpoint = \"pi05_base\"\n");
    text += "[batching]\nmax_requests = 1\nmax_in_flight = 40\n[[pipeline]]\nqueue = 8\n";
    let mut stage = |kind: &str, layers: usize, chips: &[(usize, usize)], more: &str| {
        for (i, (row, column)) in chips.iter().enumerate() {
            let (start, end) = (i * layers / chips.len(), (i + 1) * layers / chips.len());
            let chip = 4 * row + column;
            text += &format!(
                "[[pipeline.stage]]\nkind = \"{kind}\"\nlayers = \"{start}..{end}\"\nchips = [{chip}]\n{more}"
            );
        }
    };
    stage("vision", 27, &[(7, 0), (6, 0), (6, 1), (6, 2)], "");
    let snake: Vec<(usize, usize)> = (0..6)
        .rev()
        .flat_map(|row| if row % 2 == 1 { [2, 1, 0] } else { [0, 1, 2] }.map(|column| (row, column)))
        .collect();
    stage("prefix", 18, &snake, "");
    let column: Vec<(usize, usize)> = (0..6).rev().map(|row| (row, 3)).collect();
    stage("expert", 18, &column, "resident = \"l1\"\n");
    text
}

fn boards() -> [(&'static str, String); 4] {
    [
        ("three chips in a chain", CHAIN.to_owned()),
        ("t3000", config("t3000")),
        ("galaxy-bh, 32 replicas", config("galaxy-bh")),
        ("galaxy-bh, 28 chips", layout_28()),
    ]
}

#[test]
fn saturated_boards_reach_the_bound_of_their_busiest_chip() {
    for (name, text) in boards() {
        let simulation = simulation(&text);
        let pipelines = simulation.placement.pipelines.len();
        let robots = 2 * pipelines * simulation.batching.max_in_flight;
        let requests = (100 * pipelines as u64).max(1000);
        let report = simulation
            .run(&closed_loop(robots, requests), &PlannedFaults::default(), Watch::default())
            .unwrap();
        let share = report.throughput_per_s / report.bound.unwrap().requests_per_s;
        assert!(share >= 0.98, "{name}: {share:.4} of the bound");
        assert!(report.violations.none(), "{name}: {:?}", report.violations);
    }
}

#[test]
fn one_request_at_a_time_takes_the_critical_path() {
    for (name, text) in boards() {
        let simulation = simulation(&text);
        let found_ms = simulation
            .run(&closed_loop(1, 10), &PlannedFaults::default(), Watch::default())
            .unwrap()
            .latency_ms
            .max;
        let Simulation { board, sizes, request, placement, .. } = &simulation;
        let model = CostModel::new(board, sizes, *request, Calibration::shipped());
        let cost = model.pipeline(&placement.pipelines[0]).unwrap();
        let ratio = found_ms / cost.latency_ms;
        assert!(
            (0.98..=1.02).contains(&ratio),
            "{name}: {found_ms} ms, critical path {} ms",
            cost.latency_ms
        );
        let in_turn =
            CostModel { layerwise: false, ..model }.pipeline(&placement.pipelines[0]).unwrap().latency_ms;
        let alone = placement.pipelines[0].chips().len() == 1;
        assert!(alone || found_ms < in_turn, "{name}: {found_ms} ms, one stage after the other {in_turn} ms");
    }
}

#[test]
fn the_first_step_follows_the_prefix_layer_by_layer() {
    let with = simulation(CHAIN);
    let without = Simulation { follows: false, ..with.clone() };
    let [with_ms, without_ms] = [&with, &without].map(|simulation| {
        simulation
            .run(&closed_loop(1, 5), &PlannedFaults::default(), Watch::default())
            .unwrap()
            .latency_ms
            .max
    });
    let Simulation { board, sizes, request, placement, .. } = &with;
    let model = CostModel::new(board, sizes, *request, Calibration::shipped());
    let step_ms = model.slice(&placement.pipelines[0].slices[2]).unwrap().pass.total_ms();
    let saved = (without_ms - with_ms) / step_ms;
    assert!((0.9..1.0).contains(&saved), "following saves {saved} of the first step");
}

/// When each stage of the chain works on which request: `(stage, request, begin, end)` in simulated microseconds.
fn passes(events: &[String]) -> Vec<(usize, String, u64, u64)> {
    let mut running: BTreeMap<usize, (String, u64)> = BTreeMap::new();
    let mut passes = Vec::new();
    for line in events {
        let mut words = line.split_whitespace();
        let at: u64 = words.next().unwrap().parse().unwrap();
        let rest: Vec<&str> = words.collect();
        match rest[..] {
            ["pipeline", _, "slice", slice, "pass:" | "layer:", request] => {
                running.insert(slice.parse().unwrap(), (request.to_owned(), at));
            }
            ["pipeline", _, "slice", slice, "free"] => {
                let slice = slice.parse().unwrap();
                let (request, began) = running.remove(&slice).unwrap();
                passes.push((slice, request, began, at));
            }
            _ => {}
        }
    }
    passes
}

fn events(simulation: &Simulation, scenario: &Scenario, faults: &PlannedFaults) -> (Report, Vec<String>) {
    let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let events = Box::new(move |line| sink.lock().unwrap().push(line));
    let report =
        simulation.run(scenario, faults, Watch { events: Some(events), ..Watch::default() }).unwrap();
    let lines = std::mem::take(&mut *lines.lock().unwrap());
    (report, lines)
}

#[test]
fn prefix_and_vision_of_the_next_requests_run_while_one_is_denoised() {
    let simulation = simulation(CHAIN);
    let (_, events) = events(&simulation, &closed_loop(4, 8), &PlannedFaults::default());
    let passes = passes(&events);
    let of = |stage: usize, request: &str| {
        let own = passes.iter().filter(|(slice, name, ..)| *slice == stage && name == request);
        own.fold((u64::MAX, 0), |(from, to), (_, _, began, ended)| (from.min(*began), to.max(*ended)))
    };
    let overlap = |a: (u64, u64), b: (u64, u64)| a.0 < b.1 && b.0 < a.1;
    let denoised = of(2, "r0");
    assert!(overlap(denoised, of(1, "r1")), "prefix of the next beside denoising");
    // Denoising is the slowest of the three: by then two requests have been seen.
    assert!(of(0, "r2").0 < denoised.1, "vision of the second next");
}

#[test]
fn cameras_spread_over_vision_replicas() {
    let one = CHAIN.replace("quietbox-bh", "loudbox-bh");
    let split = "kind = \"vision\"\nsplit = \"cameras\"\nchips = [0, 4, 5]";
    let three = one.replace("kind = \"vision\"\nchips = [0]", split);
    let vision = |text: &str| {
        let (_, events) = events(&simulation(text), &closed_loop(1, 1), &PlannedFaults::default());
        let at = |line: &String| line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        let begins: Vec<u64> = events.iter().filter(|line| line.contains("slice 0 pass:")).map(at).collect();
        let ends: Vec<u64> = events.iter().filter(|line| line.contains("slice 0 free")).map(at).collect();
        (begins.len(), ends.iter().max().unwrap() - begins.iter().min().unwrap())
    };
    let ((one_pass, alone), (passes, spread)) = (vision(&one), vision(&three));
    assert_eq!((one_pass, passes), (1, 3));
    assert!(spread < alone, "three cameras take {spread} µs on three chips, {alone} µs on one");
}

#[test]
fn requests_join_the_running_batch_at_the_next_step_and_leave_when_they_are_done() {
    let simulation = simulation(&CHAIN.replace("max_requests = 1", "max_requests = 2"));
    // Three robots whose observations come some milliseconds apart.
    let scenario = Scenario { rate_hz: Some(40.0), seed: 2, ..closed_loop(3, 3) };
    let (_, events) = events(&simulation, &scenario, &PlannedFaults::default());
    let steps: Vec<Vec<&str>> = events
        .iter()
        .filter_map(|line| Some(line.split_once("slice 2 pass:")?.1.split_whitespace().collect()))
        .collect();
    let with = |request: &str| steps.iter().filter(|step| step.contains(&request)).count();
    // The first step of the first followed its cache; the others joined with theirs complete.
    assert_eq!((with("r0"), with("r1"), with("r2")), (9, 10, 10), "{steps:?}");
    assert_eq!(steps[0], ["r0"], "who is ready does not wait for a batch to fill: {steps:?}");
    assert!(steps.iter().all(|step| step.len() <= 2), "a batch holds two: {steps:?}");
    let last = |request| steps.iter().rposition(|step| step.contains(&request)).unwrap();
    assert!(steps[last("r0")].contains(&"r1"), "the second joined: {steps:?}");
    assert!(steps[last("r0") + 1].contains(&"r2"), "the third takes the place of the first: {steps:?}");
    assert_eq!(steps[steps.len() - 1], ["r2"], "the last is not held up: {steps:?}");
}

#[test]
fn batches_fill_on_a_busy_chip_and_raise_its_throughput() {
    let text = |batch: usize| {
        let limits = format!("max_requests = {batch}\nmax_in_flight = {}", 2 * batch);
        config("p150a").replace("max_requests = 1\nmax_in_flight = 2", &limits)
    };
    let mut before = 0.0;
    for batch in [1, 2, 4] {
        let simulation = simulation(&text(batch));
        let report =
            simulation.run(&closed_loop(32, 400), &PlannedFaults::default(), Watch::default()).unwrap();
        let share = report.throughput_per_s / report.bound.unwrap().requests_per_s;
        assert!(share >= 0.98, "batches of {batch}: {share:.4} of the bound");
        assert!(report.throughput_per_s > 1.3 * before, "batches of {batch}: {}/s", report.throughput_per_s);
        before = report.throughput_per_s;
    }
}

#[test]
fn a_full_batch_is_finished_before_a_shared_chip_begins_another_prefix() {
    let simulation = simulation(&config("p150a"));
    let (_, events) = events(&simulation, &closed_loop(2, 2), &PlannedFaults::default());
    let done = events.iter().find(|line| line.ends_with("r0 done")).unwrap();
    let done_ms = done.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e3;
    let Simulation { board, sizes, request, placement, .. } = &simulation;
    let model = CostModel::new(board, sizes, *request, Calibration::shipped());
    let cost = model.pipeline(&placement.pipelines[0]).unwrap();
    // The images of the second may be looked at in between, no more.
    let most_ms = 1.02 * (cost.latency_ms + cost.slices[0].total_ms());
    assert!(done_ms <= most_ms, "the first is done after {done_ms} ms, {most_ms} ms would do");
}

/// Cameras over two chips, prefix cut in two, the expert a ring of two; and beside it a policy on one chip.
const UNEVEN: &str = r#"
board = "t3000"
checkpoint = "pi05_base"
[request]
cameras = 3
prompt_tokens = 48
steps = 5
[batching]
max_requests = 2
max_in_flight = 6
[admission]
queue = 12
[[pipeline]]
queue = 4
transport = "host"
[[pipeline.stage]]
kind = "vision"
split = "cameras"
chips = [0, 1]
[[pipeline.stage]]
kind = "prefix"
layers = "0..7"
chips = [2]
[[pipeline.stage]]
kind = "prefix"
layers = "7..18"
chips = [3]
[[pipeline.stage]]
kind = "expert"
layers = "0..10"
chips = [4]
[[pipeline.stage]]
kind = "expert"
layers = "10..18"
chips = [5]
[[pipeline]]
chips = [6]
"#;

/// A run under faults, everything drawn from the seed.
fn storm(seed: u64, requests: u64) -> (Simulation, Scenario, PlannedFaults) {
    let simulation = simulation(UNEVEN);
    let rate_hz = [None, Some(2.0), Some(10.0)][seed as usize % 3];
    let scenario = Scenario {
        robots: 8,
        rate_hz,
        duration: Duration::from_secs(3600),
        requests: Some(requests),
        deadline: None,
        mixed: true,
        seed,
    };
    let kinds: Vec<FaultName> =
        (0..seed % 40).map(|i| FaultName::ALL[(seed as usize + i as usize) % 5]).collect();
    let faults = PlannedFaults::draw(&kinds, &simulation.placement, Duration::from_secs(requests / 10), seed);
    (simulation, scenario, faults)
}

/// *one-outcome*, *own-result*, *bounded*, *back-to-start* under crashes, device errors, stalls, slow chips and lost links.
fn weather(seeds: std::ops::Range<u64>, requests: u64) -> Counts {
    let mut all = Counts::default();
    for seed in seeds {
        let (simulation, scenario, faults) = storm(seed, requests);
        let report = simulation.run(&scenario, &faults, Watch::default()).unwrap();
        assert!(report.violations.none(), "seed {seed}: {:?} {:?}", report.violations, report.counts);
        assert_eq!(report.counts.requests, requests, "seed {seed}");
        all.done += report.counts.done;
        all.retried += report.counts.retried;
        all.failed += report.counts.failed;
        all.expired += report.counts.expired;
        all.cancelled += report.counts.cancelled;
    }
    all
}

#[test]
fn every_request_ends_once_with_its_own_result_whatever_fails() {
    let counts = weather(0..50, 500);
    println!("{counts:?}");
    assert!(
        counts.done > 5_000 && counts.retried > 50 && counts.expired > 0 && counts.cancelled > 0,
        "{counts:?}"
    );
}

#[test]
fn every_request_ends_once_with_its_own_result_whatever_else_fails() {
    weather(50..100, 500);
}

/// `cargo test --release -p tensact a_million -- --ignored` runs it.
#[test]
#[ignore = "a million requests"]
fn a_million_requests_end_once_with_their_own_results() {
    weather(1000..1100, 10_000);
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in [3, 4, 11] {
        let run = || {
            let (simulation, scenario, faults) = storm(seed, 100);
            events(&simulation, &scenario, &faults)
        };
        let ((first, events), (second, again)) = (run(), run());
        assert_eq!(events, again, "seed {seed}");
        assert_eq!(serde_json::to_string(&first).unwrap(), serde_json::to_string(&second).unwrap());
    }
}
