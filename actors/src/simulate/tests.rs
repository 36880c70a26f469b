//! The emulated boards against their bounds, and the whole system under faults.

use super::*;
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

/// 4 vision chips, 18 prefix chips, 6 expert chips in a ring, as in the published 28-chip run.
fn layout_28() -> String {
    let mut text = String::from("board = \"galaxy-bh\"\ncheckpoint = \"pi05_base\"\n");
    text += "[batching]\nmax_requests = 1\nmax_in_flight = 40\n[[pipeline]]\nqueue = 8\n";
    let mut stage = |kind: &str, cuts: &[usize], first: usize| {
        for (i, pair) in cuts.windows(2).enumerate() {
            text += &format!(
                "[[pipeline.stage]]\nkind = \"{kind}\"\nlayers = \"{}..{}\"\nchips = [{}]\n",
                pair[0],
                pair[1],
                first + i
            );
        }
    };
    stage("vision", &[0, 7, 14, 21, 27], 0);
    stage("prefix", &(0..=18).collect::<Vec<_>>(), 4);
    stage("expert", &[0, 3, 6, 9, 12, 15, 18], 22);
    text
}

#[test]
fn saturated_boards_reach_the_bound_of_their_busiest_chip() {
    for (name, text) in [
        ("chain", CHAIN.to_owned()),
        ("t3000", config("t3000")),
        ("galaxy", config("galaxy-bh")),
        ("28", layout_28()),
    ] {
        let simulation = simulation(&text);
        let pipelines = simulation.placement.pipelines.len();
        let robots = 2 * pipelines * simulation.batching.max_in_flight;
        let began = std::time::Instant::now();
        let report = simulation
            .run(&closed_loop(robots, 300 * pipelines as u64), &PlannedFaults::default(), None)
            .unwrap();
        let bound = report.bound.unwrap();
        let share = report.throughput_per_s / bound.requests_per_s;
        println!("{name}: {share:.4} of {bound:?}, {:?} {:?}", report.latency_ms, began.elapsed());
        assert!(report.violations.none(), "{:?}", report.violations);
    }
}

#[test]
fn one_request_at_a_time_takes_the_critical_path() {
    for (name, text) in [
        ("chain", CHAIN.to_owned()),
        ("t3000", config("t3000")),
        ("galaxy", config("galaxy-bh")),
        ("28", layout_28()),
    ] {
        let simulation = simulation(&text);
        let report = simulation.run(&closed_loop(1, 10), &PlannedFaults::default(), None).unwrap();
        let Simulation { board, sizes, request, placement, .. } = &simulation;
        let model = CostModel::new(board, sizes, *request, Calibration::shipped());
        let cost = model.pipeline(&placement.pipelines[0]).unwrap();
        let plain = CostModel { layerwise: false, ..model }.pipeline(&placement.pipelines[0]).unwrap();
        println!("{name}: {} of {} plain {}", report.latency_ms.max, cost.latency_ms, plain.latency_ms);
    }
}
