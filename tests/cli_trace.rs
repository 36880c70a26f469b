//! Trace files and `tensact trace`: every latency is explained, and what is no trace is refused.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A pipeline over chips of its own for each stage.
const CHAIN: &str = r#"
board = "loudbox-bh"
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

/// Waits for idle chips that are longer than this have no reason in simulated time.
const UNEXPLAINED_MS: f64 = 0.5;

fn tensact(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
    command.args(line.split_whitespace()).current_dir(folder).env("NO_COLOR", "1").output().unwrap()
}

fn answer(folder: &Path, line: &str) -> String {
    let output = tensact(folder, line);
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &Path, line: &str) -> Value {
    serde_json::from_str(&answer(folder, line)).unwrap()
}

/// What is said about a line that must be refused before anything is printed, as one line of words.
fn refusal(folder: &Path, line: &str) -> String {
    let output = tensact(folder, line);
    assert!(!output.status.success() && output.stdout.is_empty(), "{line}");
    let text = String::from_utf8_lossy(&output.stderr).replace(['│', '×', '╰', '─', '▶'], " ");
    assert!(!text.contains("panicked"), "{text}");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A folder with a deployment and the trace of a run of it.
fn traced() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    std::fs::write(path.join("chain.toml"), CHAIN).unwrap();
    answer(
        &path,
        "simulate chain.toml --robots 6 --rate 5 --duration 1s --deadline 400ms --trace-out run.json",
    );
    (folder, path)
}

/// Trace ids of the requests of a file.
fn ids(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let events: Vec<Value> = serde_json::from_str(&text).unwrap();
    let named = events.iter().filter(|event| event["ph"] == "b" && event["name"] == "request");
    named.map(|event| event["args"]["trace"].as_str().unwrap().to_owned()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A request's path has no gap, adds up to its latency, and leaves no wait without a reason.
fn assert_explained(request: &Value) {
    let latency = number(&request["latency_ms"]);
    let path = request["path"].as_array().unwrap();
    let sum: f64 = path.iter().map(|step| number(&step["ms"])).sum();
    assert!((sum - latency).abs() <= 0.01 * latency, "{sum} of {latency}");
    let mut at = 0.0;
    for step in path {
        assert!((number(&step["from_ms"]) - at).abs() < 1e-6, "{request:#}");
        at = number(&step["to_ms"]);
        let unexplained = step["reason"] == "wake" || step["reason"] == "told";
        assert!(!unexplained || number(&step["ms"]) <= UNEXPLAINED_MS, "{step}");
    }
    let rows: f64 = request["rows"].as_array().unwrap().iter().map(|row| number(&row["ms"])).sum();
    assert!((rows - latency).abs() <= 0.01 * latency, "{rows} of {latency}");
}

#[test]
fn every_latency_of_a_galaxy_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/galaxy-bh.toml");
    let run = answer(
        folder,
        &format!(
            "simulate {config} --robots 64 --rate 10 --duration 200ms --seed 1 --trace-out galaxy.json --json"
        ),
    );
    let run: Value = serde_json::from_str(&run).unwrap();
    let report = json(folder, "trace galaxy.json --json");
    assert_eq!(report["complete"], true);
    assert_eq!(report["outcomes"]["done"], run["counts"]["done"]);
    for percentile in ["mean", "p50", "p99", "max"] {
        let (ours, theirs) = (&report["latency_ms"][percentile], &run["latency_ms"][percentile]);
        assert!((number(ours) - number(theirs)).abs() < 0.01, "{percentile}: {ours} and {theirs}");
    }
    let parts = report["parts_ms"].as_object().unwrap().values().map(number).sum::<f64>();
    assert!((parts - number(&report["latency_ms"]["mean"])).abs() < 1e-6);
    assert_eq!(report["chips"].as_object().unwrap().len(), 32);
    assert_eq!(report["run"]["board"], "galaxy-bh");
    assert!(report["bottleneck"].as_str().unwrap().contains("chip"));
    assert!(report["waits"].as_array().unwrap().iter().all(|wait| number(&wait["share"]) <= 1.0));

    let ids = ids(&folder.join("galaxy.json"));
    assert_eq!(run["counts"]["requests"], ids.len());
    assert!(ids.len() >= 100, "{}", ids.len());
    for id in ids {
        assert_explained(&json(folder, &format!("trace galaxy.json --json --request {id}")));
    }
}

#[test]
fn the_slowest_request_is_shown_unless_another_is_named() {
    let (_folder, path) = traced();
    let report = json(&path, "trace run.json --json");
    let slowest = &report["slowest"];
    assert_explained(slowest);
    assert!((number(&slowest["latency_ms"]) - number(&report["latency_ms"]["max"])).abs() < 1e-9);
    let id = slowest["trace_id"].as_str().unwrap();
    let text = answer(&path, "trace run.json");
    for part in [
        "slowest",
        id,
        "loudbox-bh, emulated in simulated time",
        "prefix 0..18",
        "idle %",
        "The bottleneck is chip 3",
    ] {
        assert!(text.contains(part), "{part:?} not in\n{text}");
    }
    assert!(text.lines().count() < 80, "{text}");

    let named = json(&path, &format!("trace run.json --json --request {}", &id[..10].to_uppercase()));
    assert_eq!(&named, slowest);
    let text = answer(&path, &format!("trace run.json --request {id}"));
    for part in ["images on their way", "18 ×", "prefix layers 0..18 on chip 1; ", "denoising"] {
        assert!(text.contains(part), "{part:?} not in\n{text}");
    }
}

#[test]
fn the_same_run_gives_the_same_file() {
    let (_folder, path) = traced();
    let line =
        "simulate chain.toml --robots 6 --rate 5 --duration 1s --deadline 400ms --trace-out again.json";
    let with = answer(&path, line);
    let without = answer(&path, line.split(" --trace-out").next().unwrap());
    assert_eq!(with, without);
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    assert!(read("run.json") == read("again.json"));
}

#[test]
fn a_file_that_was_cut_off_is_read_as_far_as_it_goes() {
    let (_folder, path) = traced();
    let whole = std::fs::read(path.join("run.json")).unwrap();
    std::fs::write(path.join("cut.json"), &whole[..whole.len() / 2]).unwrap();
    let output = tensact(&path, "trace cut.json --json");
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], false);
    assert!(number(&report["outcomes"]["done"]) > 3.0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cut.json ends at line") && said.contains("cut off"), "{said}");
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let (_folder, path) = traced();
    let whole = std::fs::read_to_string(path.join("run.json")).unwrap();
    std::fs::write(path.join("wrong.json"), whole.replacen("\"kind\":\"send\"", "\"kind\":\"sing\"", 1))
        .unwrap();
    std::fs::write(path.join("other.json"), "{\"traceEvents\": []}").unwrap();
    for (line, parts) in [
        ("trace", &["<FILE>"][..]),
        ("trace missing.json", &["missing.json: No such file"]),
        ("trace chain.toml", &["chain.toml: this is no trace file of Tensact", "expected `[`"]),
        ("trace other.json", &["other.json: this is no trace file of Tensact"]),
        ("trace wrong.json", &["wrong.json, line ", "sing", "send"]),
        ("trace run.json --request xyz", &["--request", "hexadecimal"]),
        (
            "trace run.json --request 123456789",
            &["run.json: no trace id begins or ends with 123456789", "it holds 30"],
        ),
        ("simulate chain.toml --robots 1 --trace-out t.txt", &["--trace-out", "ends in .json"]),
        ("simulate chain.toml --robots 1 --trace-out no/t.json", &["cannot write the trace to no/t.json"]),
    ] {
        let message = refusal(&path, line);
        for part in parts {
            assert!(message.contains(part), "{line}: {part:?} not in: {message}");
        }
    }
    let first = ids(&path.join("run.json")).into_iter().map(|id| id[..1].to_owned());
    let mut first: Vec<String> = first.collect();
    first.sort();
    let twice = first.windows(2).find(|pair| pair[0] == pair[1]).unwrap()[0].clone();
    let message = refusal(&path, &format!("trace run.json --request {twice}"));
    assert!(message.contains(&format!("trace ids begin or end with {twice}, give more digits")), "{message}");
}

#[test]
fn one_inference_is_traced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    answer(folder, "synth --size tiny tiny");
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/tests/fixtures/image/odd.png");
    let infer =
        format!("infer --checkpoint tiny --image base={image} --state 0,0,0,0,0,0,0,1 --prompt lift --json");
    let chunk = json(folder, &format!("{infer} --trace-out one.json"));
    let report = json(folder, "trace one.json --json");
    assert_eq!(report["outcomes"], serde_json::json!({ "done": 1 }));
    let slowest = &report["slowest"];
    let (traced, told) = (number(&slowest["latency_ms"]), number(&chunk["timings"]["total_ms"]));
    // The chunk's own time goes on until the actions are in robot units.
    assert!(traced > 0.0 && traced <= told, "{traced} of {told}");
    let kinds: Vec<&str> =
        slowest["path"].as_array().unwrap().iter().filter_map(|step| step["kind"].as_str()).collect();
    assert!(kinds[0] == "preprocess" && kinds.contains(&"pass"), "{kinds:?}");
    let error =
        refusal(folder, "infer --checkpoint tiny --tensors t.safetensors --out a.npy --trace-out t.json");
    assert!(error.contains("cannot be used with"), "{error}");
}

/// A server of the chain that stops when it is dropped.
struct Serving {
    child: std::process::Child,
    address: String,
}

impl Serving {
    fn start(folder: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
        command
            .args("serve chain.toml --emulate --port 0 --log-format json --trace-out serve.json".split(' '));
        let child =
            command.current_dir(folder).env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap();
        let mut serving = Self { child, address: String::new() };
        let mut lines = BufReader::new(serving.child.stderr.take().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            let line: Value = serde_json::from_str(&line).unwrap();
            match line["message"].as_str() {
                Some("listening") => serving.address = line["address"].as_str().unwrap().to_owned(),
                Some("ready") => break,
                _ => {}
            }
        }
        // Whoever writes to a pipe that nobody reads is stopped.
        std::thread::spawn(move || lines.for_each(drop));
        serving
    }

    fn stop(&mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_and_its_robots_are_traced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("chain.toml"), CHAIN).unwrap();
    let mut serving = Serving::start(folder);
    let url = format!("ws://{}", serving.address);
    let bench = format!(
        "bench-serve --url {url} --robots 2 --requests 6 --image-size 8 --json --trace-out bench.json"
    );
    assert_eq!(json(folder, &bench)["counts"]["answered"], 6);
    serving.stop();

    let report = json(folder, "trace serve.json --json");
    assert_eq!((&report["complete"], &report["outcomes"]["done"]), (&Value::Bool(true), &Value::from(6)));
    assert_eq!(report["run"]["chips_are"], "emulated");
    assert_eq!(report["left_out"], serde_json::json!({ "activities": 0, "requests": 0 }));
    for id in ids(&folder.join("serve.json")) {
        let request = json(folder, &format!("trace serve.json --json --request {id}"));
        let path = request["path"].as_array().unwrap();
        let sum: f64 = path.iter().map(|step| number(&step["ms"])).sum();
        assert!((sum - number(&request["latency_ms"])).abs() < 1e-6);
    }

    let seen = json(folder, "trace bench.json --json");
    assert_eq!((&seen["outcomes"]["answered"], &seen["slowest"]), (&Value::from(6), &Value::Null));
    assert!(number(&seen["latency_ms"]["max"]) >= number(&report["latency_ms"]["max"]));
    assert!(answer(folder, "trace bench.json").contains("the file holds no chips"));
    assert!(refusal(folder, "trace bench.json --request a").contains("it knows nothing of chips"));
    let events: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(folder.join("bench.json")).unwrap()).unwrap();
    let parts = events.iter().filter(|event| event["cat"] == "part" && event["name"] == "denoise");
    assert_eq!(parts.count(), 6);
}
