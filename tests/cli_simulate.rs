//! `tensact simulate`: the same run for the same arguments, faults that show, and refusals.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Two pipelines of three chips.
const FLEET: &str = r#"
board = "loudbox-bh"
checkpoint = "pi05_base"
[request]
cameras = 2
prompt_tokens = 32
[batching]
max_requests = 1
max_in_flight = 4
[admission]
queue = 8
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
[[pipeline]]
[[pipeline.stage]]
kind = "vision"
chips = [4]
[[pipeline.stage]]
kind = "prefix"
chips = [5]
[[pipeline.stage]]
kind = "expert"
chips = [7]
"#;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "fleet.toml", FLEET);
    folder
}

fn write(folder: &TempDir, name: &str, text: &str) {
    std::fs::write(folder.path().join(name), text).unwrap();
}

/// Runs `tensact simulate` with the words of `line` in a folder.
fn simulate(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
    command.arg("simulate").args(line.split_whitespace()).current_dir(folder).env("NO_COLOR", "1");
    command.output().unwrap()
}

fn answer(folder: &TempDir, line: &str) -> String {
    let output = simulate(folder.path(), line);
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &TempDir, line: &str) -> Value {
    serde_json::from_str(&answer(folder, line)).unwrap()
}

/// What is said about a line that must be refused before anything is printed, as one line of words.
fn refusal(folder: &TempDir, line: &str) -> String {
    let output = simulate(folder.path(), line);
    assert!(!output.status.success() && output.stdout.is_empty(), "{line}");
    let text = String::from_utf8_lossy(&output.stderr).replace(['│', '×', '╰', '─', '▶'], " ");
    assert!(!text.contains("panicked"), "{text}");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every request has ended in one way.
fn assert_all_answered(report: &Value) {
    let count = |name: &str| report["counts"][name].as_u64().unwrap();
    let ends =
        ["done", "queue_full", "deadline_impossible", "superseded", "expired", "failed", "unavailable"];
    assert!(count("done") > 0, "{report}");
    assert_eq!(count("requests"), ends.map(count).iter().sum::<u64>() + count("cancelled"), "{report}");
    assert!(report["violations"].as_object().unwrap().values().all(|broken| broken == 0), "{report}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = folder();
    let run = |seed: u64, events: &str| {
        let line = format!(
            "fleet.toml --robots 12 --rate 10 --duration 1s --mixed --fault error --seed {seed} --json --events {events}"
        );
        let report = answer(&folder, &line);
        (report, std::fs::read_to_string(folder.path().join(events)).unwrap())
    };
    let once = run(1, "once.txt");
    assert!(once == run(1, "twice.txt"));
    assert!(once.1 != run(2, "other.txt").1);
    assert!(once.1.lines().count() > 100 && once.1.contains("admitted"), "{}", once.1);
    assert_all_answered(&serde_json::from_str(&once.0).unwrap());
}

#[test]
fn a_closed_loop_is_answered_as_fast_as_chips_allow() {
    let folder = folder();
    let report = json(&folder, "fleet.toml --robots 8 --duration 2s --json");
    assert_all_answered(&report);
    assert_eq!(report["counts"]["done"], report["counts"]["requests"]);
    let [throughput, bound] = [&report["throughput_per_s"], &report["bound"]["requests_per_s"]];
    let share = throughput.as_f64().unwrap() / bound.as_f64().unwrap();
    assert!((0.8..1.01).contains(&share), "{share} of the bound");

    let few = json(&folder, "fleet.toml --robots 3 --requests 10 --json");
    assert_eq!(few["counts"]["requests"], 10);
}

#[test]
fn people_read_what_limited_a_run() {
    let folder = folder();
    for (line, parts) in [
        ("--robots 2 --rate 2", ["the offered load", "2 robots at 2/s for 1s"]),
        ("--robots 8", ["the busiest chip", "each asks again when answered"]),
        ("--robots 40 --rate 10 --deadline 5ms", ["the deadline", "deadline 5ms"]),
    ] {
        let text = answer(&folder, &format!("fleet.toml --duration 1s {line}"));
        for part in parts.iter().chain(&["loudbox-bh, emulated", "latency", "bound", "vision", "0, 4"]) {
            assert!(text.contains(part), "{line}: {part:?} not in\n{text}");
        }
    }
    write(&folder, "narrow.toml", &FLEET.replace("max_in_flight = 4", "max_in_flight = 1"));
    let text = answer(&folder, "narrow.toml --duration 1s --robots 8");
    assert!(text.contains("the number in flight: 1 in each pipeline"), "{text}");
}

#[test]
fn faults_show_and_every_request_is_answered() {
    let folder = folder();
    let line = "fleet.toml --robots 8 --rate 10 --duration 2s --seed 3 --fault crash --fault slow:2 --fault stall \
                --fault link --fault error";
    let report = json(&folder, &format!("{line} --json"));
    assert_all_answered(&report);
    let kind = |fault: &Value| fault["kind"]["kind"].as_str().unwrap().to_owned();
    let mut kinds: Vec<String> = report["faults"].as_array().unwrap().iter().map(kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["crash", "error", "link_down", "slow", "slow", "stall"]);
    let text = answer(&folder, line);
    for part in ["crash", "device error", "slower for", "stall of", "link down for"] {
        assert!(text.contains(part), "{part:?} not in\n{text}");
    }
}

#[test]
fn a_deployments_own_deadline_holds_unless_another_is_given() {
    let folder = folder();
    let text = FLEET.replace("[admission]", "[deadlines]\ndefault_ms = 80\n[admission]");
    write(&folder, "timed.toml", &text);
    let deadline = |more: &str| {
        json(&folder, &format!("timed.toml --robots 1 --requests 1 --json {more}"))["scenario"]["deadline"]
            .clone()
    };
    assert_eq!(deadline("")["nanos"], 80_000_000);
    assert_eq!(deadline("--deadline 2s")["secs"], 2);
    write(&folder, "never.toml", &text.replace("= 80", "= -80"));
    let message = refusal(&folder, "never.toml --robots 1");
    assert!(message.contains("never.toml: the deployment cannot run: `deadlines.default_ms`"), "{message}");
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let folder = folder();
    write(&folder, "off_board.toml", &FLEET.replace("chips = [7]", "chips = [70]"));
    write(&folder, "elsewhere.toml", &FLEET.replace("pi05_base", "./not/here"));
    for (line, parts) in [
        ("fleet.toml", &["--robots"][..]),
        ("fleet.toml --robots 0", &["--robots", "0 is not in 1.."]),
        ("fleet.toml --robots 1 --rate 0", &["--rate", "from 0.000001"]),
        ("fleet.toml --robots 1 --rate nan", &["--rate", "expected observations in a second"]),
        ("fleet.toml --robots 1 --rate inf", &["--rate"]),
        ("fleet.toml --robots 1 --duration 0s", &["--duration", "more than 0"]),
        ("fleet.toml --robots 1 --duration 9000y", &["--duration", "at most 366 days"]),
        ("fleet.toml --robots 1 --deadline 100", &["--deadline", "time unit"]),
        ("fleet.toml --robots 1 --requests 0", &["--requests", "0 is not in 1.."]),
        ("fleet.toml --robots 1 --fault fire", &["--fault", "`fire` is not a fault", "crash, error, stall"]),
        ("fleet.toml --robots 1 --fault crash:0", &["--fault", "`0` faults cannot be"]),
        (
            "fleet.toml --robots 1 --events no/such/folder.txt",
            &["cannot write the events to no/such/folder.txt"],
        ),
        ("missing.toml --robots 1", &["missing.toml"]),
        ("elsewhere.toml --robots 1", &["./not/here", "pi0_base, pi05_base"]),
        ("off_board.toml --robots 1", &["off_board.toml: the deployment cannot run", "70", "tensact check"]),
    ] {
        let message = refusal(&folder, line);
        for part in parts {
            assert!(message.contains(part), "{line}: {part:?} not in: {message}");
        }
    }
}
