//! The `tensact` binary on boards, plans and deployment files.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `tensact` with the words of `line` in a folder.
fn tensact(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
    command.args(line.split_whitespace()).current_dir(folder).env("NO_COLOR", "1").output().unwrap()
}

fn answer(folder: &Path, line: &str) -> String {
    let output = tensact(folder, line);
    assert!(output.status.success(), "tensact {line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &Path, line: &str) -> Value {
    serde_json::from_str(&answer(folder, line)).unwrap()
}

/// What a command says that must fail, as one line of words.
fn refusal(folder: &Path, line: &str) -> String {
    let output = tensact(folder, line);
    assert!(!output.status.success(), "tensact {line} should fail");
    let text = String::from_utf8_lossy(&output.stderr).replace(['│', '×', '╰', '─', '▶'], " ");
    assert!(!text.contains("panicked"), "{text}");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_board_is_listed_and_drawn() {
    let boards = json(&root(), "boards --json");
    let names: Vec<&str> = boards.as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 13);
    let table = answer(&root(), "boards");
    for name in names {
        assert!(table.contains(name), "{name}");
        let drawn = answer(&root(), &format!("topology show {name}"));
        let shown = json(&root(), &format!("topology show {name} --json"));
        let chips = shown["board"]["chips"].as_array().unwrap().len();
        assert_eq!(drawn.matches("chip ").count(), chips, "{name}\n{drawn}");
    }
}

#[test]
fn ready_deployments_pass_their_check_and_are_drawn() {
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let report = json(&root(), &format!("check {} --json", path.display()));
        assert!(report["latency_ms"].as_f64().unwrap() > 0.0, "{}", path.display());
        let drawn = answer(&root(), &format!("topology show {}", path.display()));
        assert!(drawn.contains("p0 "), "{drawn}");
    }
}

#[test]
fn a_plan_is_a_deployment_that_passes_its_check() {
    let folder = tempfile::tempdir().unwrap();
    for goal in ["--goal latency", "--goal throughput", "--slo 100ms --robots 16"] {
        let line = format!("plan --board t3000 --variant pi0 --cameras 2 {goal} --out d.toml --json");
        let plan = json(folder.path(), &line);
        let report = json(folder.path(), "check d.toml --json");
        let (planned, checked) = (&plan["chosen"]["latency_ms"], &report["latency_ms"]);
        let difference = planned.as_f64().unwrap() - checked.as_f64().unwrap();
        assert!(difference.abs() < 1e-6, "{goal}: planned {planned}, checked {checked}");
    }
    let table = answer(folder.path(), "plan --board t3000 --variant pi0 --slo 1ms --robots 16");
    assert!(table.contains("The goal is not met") && table.contains("of the 1 ms allowed"), "{table}");
}

#[test]
fn a_plan_takes_the_sizes_of_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    answer(folder.path(), "synth --size tiny tiny");
    let tiny = json(folder.path(), "plan --board p150a --checkpoint tiny --out d.toml --json");
    let base = json(folder.path(), "plan --board p150a --variant pi0 --json");
    let latency = |plan: &Value| plan["chosen"]["latency_ms"].as_f64().unwrap();
    assert!(latency(&tiny) < latency(&base), "{} {}", latency(&tiny), latency(&base));
    answer(folder.path(), "check d.toml");
}

#[test]
fn what_cannot_be_is_refused_with_a_place_and_advice() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let head = "board = \"n150\"\ncheckpoint = \"pi0_base\"\n";
    write("unknown_key.toml", &format!("{head}[[pipeline]]\nchip = [0]\n"));
    write("off_board.toml", &format!("{head}[[pipeline]]\nchips = [7]\n"));
    write("elsewhere.toml", "board = \"n150\"\ncheckpoint = \"./not/here\"\n[[pipeline]]\nchips = [0]\n");
    write("junk.yaml", "arch: [");
    for (line, parts) in [
        ("check unknown_key.toml", &["unknown_key.toml:4:1", "chip"][..]),
        ("check off_board.toml", &["off_board.toml:4:9", "chip-on-board"]),
        ("check elsewhere.toml", &["./not/here", "pi0_base, pi05_base"]),
        ("check missing.toml", &["missing.toml"]),
        ("topology show junk.yaml", &["junk.yaml:1"]),
        ("topology show galxy-bh", &["galxy-bh", "did you mean `galaxy-bh`"]),
        ("plan --board n150 --variant pi0 --cameras 0", &["cameras is 0"]),
        ("plan --board n150 --variant pi0 --slo 50 --robots 1", &["--slo", "time unit"]),
        ("plan --board n150", &["--variant"]),
    ] {
        let message = refusal(folder.path(), line);
        for part in parts {
            assert!(message.contains(part), "tensact {line}: {part:?} not in: {message}");
        }
    }
}

/// What leaves on a socket arrives there, in the same order, for every chip of a deployment that cuts all stages.
#[test]
fn the_calls_of_a_deployment_are_exported() {
    let folder = tempfile::tempdir().unwrap();
    let file = root().join("tests/ttnn-mock/four_chips.toml");
    answer(folder.path(), &format!("ttnn export {} --out calls.json", file.display()));
    let text = std::fs::read_to_string(folder.path().join("calls.json")).unwrap();
    let export: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((export["format"].as_u64(), export["ttnn"].as_str()), (Some(1), Some("0.69")));
    let programs = export["programs"].as_array().unwrap();
    let calls = |program: &Value| -> Vec<Value> {
        let segments = program["segments"].as_array().unwrap().iter();
        segments.flat_map(|segment| segment["calls"].as_array().unwrap().clone()).collect()
    };
    let carried = |socket: &Value, chip: &Value, op: &str, argument: &str| -> Vec<Value> {
        let here = programs.iter().filter(|program| &program["chip"] == chip);
        let tensors = here.flat_map(|program| {
            let calls = calls(program).into_iter();
            let own = calls.filter(|call| call["op"] == op && call["socket"] == socket["id"]);
            let shape =
                |call: Value| program["values"][call[argument].as_u64().unwrap() as usize]["shape"].clone();
            own.map(shape).collect::<Vec<_>>()
        });
        tensors.collect()
    };
    let sockets = export["sockets"].as_array().unwrap();
    assert!(sockets.len() >= 4, "{sockets:?}");
    for socket in sockets {
        let sent = carried(socket, &socket["from_chip"], "send", "value");
        let received = carried(socket, &socket["to_chip"], "receive", "into");
        assert!(!sent.is_empty(), "nothing uses {socket}");
        assert_eq!(sent, received, "{socket}");
    }
    let split = "board = \"t3000\"\ncheckpoint = \"pi05_base\"\n[[pipeline]]\n[[pipeline.stage]]\nkind = \"vision\"\n\
                 chips = [0]\n[[pipeline.stage]]\nkind = \"prefix\"\nchips = [0, 1]\nsplit = \"tensor\"\n\
                 [[pipeline.stage]]\nkind = \"expert\"\nchips = [1]\n";
    std::fs::write(folder.path().join("split.toml"), split).unwrap();
    let refused = refusal(folder.path(), "ttnn export split.toml");
    assert!(refused.contains("there are no TT-NN programs"), "{refused}");
}
