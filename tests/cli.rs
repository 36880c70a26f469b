//! The `tensact` binary against real files: what it answers, and how it refuses what it cannot use.
//!
//! Every test works in a folder of its own that holds `tiny` (a synthetic π0 checkpoint), `odd.png` and `odd.jpg`.
//! Commands are written as a user would type them there.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;
use tensact::runtime::tensor_file::TensorFile;
use tensact::runtime::verify::Closeness;

/// An observation that everything is right with, for the generic robot.
const INFER: &str = "infer --checkpoint tiny --image base=odd.png --image left_wrist=odd.jpg \
                     --state 0.1,-0.2,0.3,0,0,0,0,1 --prompt pick_up_the_red_block";

const PNG: &[u8] = include_bytes!("../runtime/tests/fixtures/image/odd.png");
const JPEG: &[u8] = include_bytes!("../runtime/tests/fixtures/image/odd.jpg");

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("odd.png", PNG);
        folder.write("odd.jpg", JPEG);
        folder.answer("synth --size tiny tiny");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Copies a golden policy into the folder.
    fn add_golden(&self, policy: &str) {
        std::fs::create_dir(self.path(policy)).unwrap();
        for file in ["config.json", "dims.json", "model.safetensors", "golden.safetensors"] {
            std::fs::copy(golden(policy, file), self.path(policy).join(file)).unwrap();
        }
    }

    /// `tensact` and the words of `line`, with caches in the folder and without a network.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command.env("HOME", self.path("home")).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1");
        command.env_remove("HF_HUB_CACHE").env_remove("HF_ENDPOINT").env_remove("HF_TOKEN");
        command
    }

    fn tensact(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What a command prints that succeeds.
    fn answer(&self, line: &str) -> String {
        let output = self.tensact(line);
        assert!(output.status.success(), "tensact {line}\n{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.answer(line)).unwrap()
    }

    /// A command must fail in an orderly way and say all of `parts`.
    fn refuses(&self, line: &str, parts: &[&str]) {
        let output = self.tensact(line);
        let said = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "tensact {line}: {}\n{said}", output.status);
        assert!(!said.contains("panicked"), "tensact {line}\n{said}");
        assert!(output.stdout.is_empty(), "tensact {line} fails, but answers first");
        for part in parts {
            assert!(unwrapped(&said).contains(&unwrapped(part)), "tensact {line}: {part:?} not in\n{said}");
        }
    }
}

fn golden(policy: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(policy).join(file)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Text without what the error printer adds to fit a terminal: frames, and line breaks that may split words.
fn unwrapped(text: &str) -> String {
    text.chars().filter(|&letter| !letter.is_whitespace() && !"│×╰─▶".contains(letter)).collect()
}

/// All files of this name below a folder.
fn find(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let deeper = folders.iter().flat_map(|folder| find(folder, name));
    files.into_iter().filter(|file| file.ends_with(name)).chain(deeper).collect()
}

fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = TensorFile::open(path).unwrap();
    let tensor = &file.tensors()[name];
    (tensor.shape().to_vec(), tensor.to_f32())
}

/// Rows of numbers as JSON holds them.
fn numbers(rows: &Value) -> Vec<f32> {
    let rows = rows.as_array().unwrap().iter();
    rows.flat_map(|row| row.as_array().unwrap()).map(|value| value.as_f64().unwrap() as f32).collect()
}

fn shape(rows: &Value) -> [usize; 2] {
    let rows = rows.as_array().unwrap();
    [rows.len(), rows[0].as_array().unwrap().len()]
}

#[test]
fn synth_writes_the_same_bytes_every_time_and_the_goldens_weights() {
    let folder = Folder::new();
    for (variant, policy) in [("pi0", "tiny_pi0"), ("pi05", "tiny_pi05")] {
        for name in ["once", "twice"] {
            folder.answer(&format!("synth --variant {variant} --size tiny --seed 0 {name}"));
        }
        for file in ["model.safetensors", "config.json", "dims.json", "tokenizer.json"] {
            let [once, twice] =
                ["once", "twice"].map(|name| std::fs::read(folder.path(name).join(file)).unwrap());
            assert!(once == twice, "{policy}: {file}");
        }
        let written = TensorFile::open(&folder.path("once/model.safetensors")).unwrap();
        let expected = TensorFile::open(&golden(policy, "model_openpi_bf16.safetensors")).unwrap();
        assert!(written.tensors().keys().eq(expected.tensors().keys()), "{policy}");
        for (name, tensor) in written.tensors() {
            let golden = &expected.tensors()[name];
            assert_eq!((tensor.dtype(), tensor.shape()), (golden.dtype(), golden.shape()), "{name}");
            assert!(tensor.bytes() == golden.bytes(), "{policy}: {name}");
        }
    }
    folder.answer("synth --size tiny --seed 1 other");
    let weights = |name: &str| std::fs::read(folder.path(name).join("model.safetensors")).unwrap();
    assert!(weights("other") != weights("tiny"), "another seed gives other weights");
}

#[test]
fn inspect_says_what_a_checkpoint_is() {
    let folder = Folder::new();
    let table = folder.answer("inspect tiny");
    for part in ["pi0", "named by openpi", "vision", "prefix", "expert", "bf16", "824.62 k"] {
        assert!(table.contains(part), "{part:?} not in\n{table}");
    }
    folder.add_golden("tiny_pi05");
    let inspection = folder.json("inspect tiny_pi05 --json");
    assert_eq!(inspection["naming"], "LeRobot 0.4 or newer");
    assert_eq!(inspection["sizes"]["variant"], "pi05");
    assert_eq!(inspection["cameras"], json!(["cam0", "cam1", "cam2"]));
    assert_eq!(inspection["unused_tensors"], json!(["paligemma_with_expert.gemma_expert.lm_head.weight"]));
    for (stage, parameters) in [("vision", 176_360), ("prefix", 471_936), ("expert", 225_800)] {
        let totals = &inspection["stages"][stage];
        assert_eq!(totals["parameters"], parameters, "{stage}");
        assert_eq!(totals["bytes"], 4 * parameters, "{stage}");
        assert_eq!(totals["dtypes"], json!({ "f32": parameters }), "{stage}");
    }
    assert_eq!(inspection["unused"]["parameters"], 512 * 64);
}

#[test]
fn verify_passes_on_the_goldens() {
    let folder = Folder::new();
    for policy in ["tiny_pi0", "tiny_pi05"] {
        folder.add_golden(policy);
        let verify = format!("verify {policy} --reference {policy}/golden.safetensors");
        let verdict = folder.json(&format!("{verify} --dtype f32 --threshold 0.9999 --json"));
        assert_eq!(verdict["passed"], true, "{policy}");
        let comparisons = verdict["comparisons"].as_array().unwrap();
        for name in ["vision.0.projected", "prefix.kv.2.v", "step9.v_t", "out.actions"] {
            assert!(comparisons.iter().any(|comparison| comparison["name"] == name), "{policy}: {name}");
        }
        assert!(folder.answer(&verify).contains("all reach the threshold of 0.99"), "{policy} in bf16");
    }
}

#[test]
fn verify_predicts_what_weights_of_a_type_cost_on_a_chip() {
    let folder = Folder::new();
    folder.add_golden("tiny_pi05");
    let verify = "verify tiny_pi05 --reference tiny_pi05/golden.safetensors --device emulated-numerics";
    let verdict = folder.json(&format!("{verify} --json"));
    assert_eq!(verdict["passed"], true);
    assert_eq!([&verdict["device"], &verdict["dtype"]], ["emulated-numerics", "bfp8_b"]);
    for stage in ["vision", "prefix", "expert"] {
        let comparisons = verdict["comparisons"].as_array().unwrap().iter();
        let of_stage: Vec<&Value> = comparisons.filter(|comparison| comparison["stage"] == stage).collect();
        let summary = &verdict["stages"][stage];
        assert_eq!(summary["tensors"], of_stage.len(), "{stage}");
        let pcc = |value: &Value| value["pcc"].as_f64().unwrap();
        let worst = of_stage.iter().min_by(|a, b| pcc(a).total_cmp(&pcc(b))).unwrap();
        assert_eq!(summary["pcc"], json!({ "value": worst["pcc"], "tensor": worst["name"] }), "{stage}");
    }
    let bf16 = folder.json(&format!("{verify} --dtype bf16 --json"));
    let error = |verdict: &Value| verdict["stages"]["expert"]["relative_error"]["value"].as_f64().unwrap();
    assert!(error(&bf16) < error(&verdict), "{} {}", error(&bf16), error(&verdict));

    let table = folder.answer(&format!("{verify} --dtype bf16"));
    for part in [
        "not compared: vision.0.tower_out (inside a slice",
        "worst PCC",
        "as chips with bf16 weights would, emulated on the host",
        "all reach the threshold of 0.99",
    ] {
        assert!(table.contains(part), "{part:?} not in\n{table}");
    }
}

#[test]
fn verify_refuses_types_that_a_device_does_not_compute_in() {
    let folder = Folder::new();
    // Before any work: neither file is looked for.
    let verify = "verify nowhere --reference nothing.safetensors";
    for (options, parts) in [
        ("--dtype bfp8_b", ["the host does not compute in bfp8_b", "--dtype bf16 or f32"]),
        ("--device emulated-numerics --dtype f32", ["do not have weights in f32", "--dtype bfp8_b or bf16"]),
        ("--dtype f16", ["`f16` is not a compute type", "bf16, bfp8_b or f32"]),
        ("--device p150a", ["'p150a'", "host, emulated-numerics"]),
    ] {
        folder.refuses(&format!("{verify} {options}"), &parts);
    }
}

#[test]
fn verify_fails_on_a_wrong_scale_that_correlation_cannot_see() {
    let folder = Folder::new();
    folder.add_golden("tiny_pi0");
    let golden = TensorFile::open(&folder.path("tiny_pi0/golden.safetensors")).unwrap();
    let scaled = golden.tensors()["out.actions"].to_f32().into_iter().map(|value| 1.1 * value);
    let scaled: Vec<u8> = scaled.flat_map(f32::to_le_bytes).collect();
    let views = golden.tensors().iter().map(|(name, tensor)| {
        let bytes = if name == "out.actions" { &scaled } else { tensor.bytes() };
        (name, TensorView::new(tensor.dtype(), tensor.shape().to_vec(), bytes).unwrap())
    });
    folder.write("scaled.safetensors", safetensors::serialize(views, None).unwrap());

    let verify = "verify tiny_pi0 --reference scaled.safetensors --dtype f32 --threshold 0.9999";
    let output = folder.tensact(&format!("{verify} --json"));
    assert_eq!(output.status.code(), Some(1));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["passed"], false);
    let comparisons = verdict["comparisons"].as_array().unwrap();
    let actions = comparisons.iter().find(|comparison| comparison["name"] == "out.actions").unwrap();
    assert!(actions["pcc"].as_f64().unwrap() > 0.999_999, "{actions}");
    assert!((actions["norm_ratio"].as_f64().unwrap() - 1.0 / 1.1).abs() < 1e-4, "{actions}");

    let output = folder.tensact(verify);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let far: Vec<&str> = table.lines().filter(|line| line.contains("FAR")).collect();
    assert!(far.len() == 1 && far[0].contains("out.actions"), "{table}");
    assert!(table.contains("NOT all reach"), "{table}");
}

#[test]
fn infer_gives_a_chunk_in_the_robots_own_dims() {
    let folder = Folder::new();
    let generic = folder.json(&format!("{INFER} --json"));
    assert_eq!(shape(&generic["actions"]), [10, 8]);
    assert_eq!(generic["warnings"], json!([]));
    assert!(generic["timings"]["total_ms"].as_f64().unwrap() > 0.0);
    let libero = folder.json(&format!("{INFER} --profile libero --json"));
    assert_eq!(shape(&libero["actions"]), [10, 7]);

    let table = folder.answer(INFER);
    assert!(table.contains(&format!("{:.4}", generic["actions"][9][7].as_f64().unwrap())), "{table}");
}

#[test]
fn the_same_seed_gives_the_same_actions_on_any_number_of_threads() {
    let folder = Folder::new();
    let actions = |options: &str| folder.json(&format!("{INFER} --json {options}"))["actions"].clone();
    let seven = actions("--seed 7 --threads 1");
    assert_eq!(actions("--seed 7 --threads 1"), seven);
    assert_eq!(actions("--seed 7 --threads 2"), seven);
    assert_ne!(actions("--seed 8 --threads 1"), seven);
    assert_ne!(actions("--seed 7 --threads 1 --steps 3"), seven);
    assert_eq!(actions(""), actions("--seed 0 --steps 10 --dtype bf16"));
}

#[test]
fn out_files_of_all_kinds_hold_the_printed_actions() {
    let folder = Folder::new();
    let printed = numbers(&folder.json(&format!("{INFER} --json"))["actions"]);
    for file in ["actions.json", "actions.npy", "actions.safetensors"] {
        folder.answer(&format!("{INFER} --out {file}"));
    }
    let answer: Value = serde_json::from_str(&folder.text("actions.json")).unwrap();
    assert_eq!(numbers(&answer["actions"]), printed);
    let npy = std::fs::read(folder.path("actions.npy")).unwrap();
    let npy = npyz::NpyFile::new(&npy[..]).unwrap();
    assert_eq!(npy.shape(), [10, 8]);
    assert_eq!(npy.into_vec::<f32>().unwrap(), printed);
    assert_eq!(tensor(&folder.path("actions.safetensors"), "actions"), (vec![10, 8], printed));
}

#[test]
fn infer_on_tensors_gives_the_goldens_actions() {
    let folder = Folder::new();
    for policy in ["tiny_pi0", "tiny_pi05"] {
        folder.add_golden(policy);
        let reference = format!("{policy}/golden.safetensors");
        let infer = format!("infer --checkpoint {policy} --tensors {reference} --dtype f32");
        folder.answer(&format!("{infer} --out actions.safetensors"));
        let found = tensor(&folder.path("actions.safetensors"), "out.actions");
        let expected = tensor(&folder.path(&reference), "out.actions");
        assert_eq!(found.0, expected.0, "{policy}");
        let closeness = Closeness::of(&found.1, &expected.1);
        assert!(closeness.relative_error < 1e-4, "{policy}: {closeness:?}");
    }
}

#[test]
fn demo_needs_nothing_and_keeps_its_checkpoint() {
    let folder = Folder::new();
    let demo = || folder.json("demo --robots 2 --observations 1 --json");
    let actions = |answer: &Value| -> Vec<Value> {
        let robots = answer["robots"].as_array().unwrap().iter();
        robots
            .flat_map(|robot| robot["chunks"].as_array().unwrap())
            .map(|chunk| chunk["actions"].clone())
            .collect()
    };
    let answer = demo();
    let first = actions(&answer);
    assert_eq!(first.iter().map(shape).collect::<Vec<_>>(), [[50, 7]; 2]);
    assert_ne!(first[0], first[1], "robots see different things");
    assert_eq!(answer["stats"]["counts"]["done"], 2);
    let slices = answer["stats"]["pipelines"][0]["slices"].as_array().unwrap();
    assert_eq!(
        slices.iter().map(|slice| &slice["stage"]).collect::<Vec<_>>(),
        ["vision", "prefix", "expert"]
    );
    let weights = find(folder.0.path(), "model.safetensors");
    let weights = weights.iter().find(|path| !path.starts_with(folder.path("tiny"))).unwrap();
    let modified = || std::fs::metadata(weights).unwrap().modified().unwrap();
    let written = modified();
    assert_eq!(actions(&demo()), first, "company in a batch changes nothing");
    assert_eq!(modified(), written);
}

#[test]
fn checkpoints_that_cannot_be_used_are_refused() {
    let folder = Folder::new();
    folder.answer("synth --size tiny --variant pi05 pi05");
    for name in ["truncated", "unconfigured", "swapped", "weightless"] {
        folder.answer(&format!("synth --size tiny {name}"));
    }
    let weights = std::fs::read(folder.path("tiny/model.safetensors")).unwrap();
    folder.write("truncated/model.safetensors", &weights[..weights.len() / 2]);
    std::fs::remove_file(folder.path("unconfigured/config.json")).unwrap();
    folder.write("swapped/model.safetensors", std::fs::read(folder.path("pi05/model.safetensors")).unwrap());
    std::fs::remove_file(folder.path("weightless/model.safetensors")).unwrap();
    let cases: [(&str, &[&str]); 5] = [
        ("truncated", &["truncated/model.safetensors is corrupt", "truncated?"]),
        ("unconfigured", &["unconfigured/config.json", "needs a config.json beside its weights"]),
        ("swapped", &["says the policy is pi0", "the tensors are those of pi05", "use the config.json that"]),
        ("weightless", &["no checkpoint at weightless", "a folder with model.safetensors"]),
        ("nowhere", &["no file or folder `nowhere`", "no Hugging Face id"]),
    ];
    for (checkpoint, parts) in cases {
        folder.refuses(&format!("inspect {checkpoint}"), parts);
        folder.refuses(&INFER.replace("tiny", checkpoint), parts);
    }
}

#[test]
fn without_a_network_it_says_what_to_download_and_where_to_put_it() {
    let parts = [
        "HF_HUB_OFFLINE is set",
        "put config.json, model.safetensors",
        "the tokenizer (tokenizer.json",
        "of https://huggingface.co/lerobot/pi0_base into one folder and give its path",
        "hf/hub/models--lerobot--pi0_base",
    ];
    Folder::new().refuses("inspect lerobot/pi0_base", &parts);
}

#[test]
fn wrong_tokenizers_are_refused() {
    let folder = Folder::new();
    folder.write("junk.json", "junk");
    folder.write("junk.model", "junk");
    folder.write("other.json", folder.text("tiny/tokenizer.json").replace("<bos>", "<start>"));
    for (file, parts) in [
        ("junk.json", ["junk.json is not a usable tokenizer", "line 1"]),
        ("junk.model", ["junk.model is not a usable tokenizer", "not a SentencePiece model"]),
        ("other.json", ["other.json is not a Gemma tokenizer", "no token <bos>"]),
        ("absent.json", ["cannot read absent.json", "No such file"]),
    ] {
        folder.refuses(&format!("{INFER} --tokenizer {file}"), &parts);
    }
    std::fs::remove_file(folder.path("tiny/tokenizer.json")).unwrap();
    folder.refuses(INFER, &["no tokenizer in tiny", "Put the tokenizer of google/paligemma-3b-pt-224"]);
}

#[test]
fn images_that_cannot_be_used_are_refused_by_name_and_all_at_once() {
    let folder = Folder::new();
    let size = JPEG.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap() + 5;
    let mut zero = JPEG.to_vec();
    zero[size..size + 4].fill(0);
    folder.write("zero.jpg", zero);
    folder.write("cut.png", &PNG[..PNG.len() / 2]);
    folder.write("text.png", "not an image");
    for (file, reason) in [
        ("text.png", "cannot decode"),
        ("cut.png", "unexpected end of file"),
        ("zero.jpg", "zero"),
        ("absent.png", "No such file"),
    ] {
        folder.refuses(&INFER.replace("odd.png", file), &[file, reason]);
    }
    let two_wrongs = INFER.replace("base=odd.png", "base=absent.png").replace("left_wrist", "front");
    folder.refuses(&two_wrongs, &["absent.png", "no camera `front`", "base, left_wrist, right_wrist"]);
    let twice = INFER.replace("left_wrist", "base_0_rgb");
    folder.refuses(&twice, &["camera `base_0_rgb` is given twice"]);
    folder.refuses(&INFER.replace("base=", ""), &["`odd.png` is not CAMERA=FILE", "base=top.png"]);
}

#[test]
fn states_prompts_and_options_that_cannot_be_used_are_refused() {
    let folder = Folder::new();
    let with_state = |values| INFER.replace("0.1,-0.2,0.3,0,0,0,0,1", values);
    let without_prompt = |line: &str| line.replace("--prompt pick_up_the_red_block", "");
    let elsewhere = INFER.replace("tiny", "nowhere");
    for (line, parts) in [
        (with_state("0,nan,0,0,0,0,0,0"), ["state `state` holds NaN at 1", "must be finite"]),
        (with_state("0,0,0,0,0,0,0,0,0"), ["state `state` has 9 values", "expected 1 to 8"]),
        (with_state("0,0") + " --profile libero", ["`observation/state` has 2 values", "expected 8"]),
        (with_state("0,x"), ["'x'", "--state"]),
        (without_prompt(INFER), ["`prompt` or `task` is missing", "no default instruction"]),
        (without_prompt(&with_state("nan")), ["holds NaN at 0", "`prompt` or `task` is missing"]),
        (format!("{INFER} --steps 0"), ["0 denoising steps cannot be", "expected 1 to 1000"]),
        (format!("{INFER} --deadline 1us"), ["deadline of 0.0 ms passed", "preprocessing"]),
        (format!("{INFER} --deadline 0s"), ["--deadline", "more than 0"]),
        (format!("{INFER} --profile nao"), ["no profile `nao`", "libero, droid, aloha, generic"]),
        (format!("{INFER} --dtype f16"), ["`f16` is not a compute type", "expected bf16 or f32"]),
        // Before any work: the checkpoint is not looked for.
        (elsewhere + " --out actions.xyz", ["cannot write actions.xyz", ".json, .npy or .safetensors"]),
    ] {
        folder.refuses(&line, &parts);
    }
    let stateless = with_state("").replace("--state", "");
    folder.refuses(&stateless, &["state `state` has 0 values", "expected 1 to 8"]);
    assert!(!folder.path("actions.xyz").exists());
}

#[test]
fn a_prompt_that_is_too_long_is_cut_with_a_warning() {
    let folder = Folder::new();
    let line = INFER.replace("pick_up", &"pick_up_".repeat(20));
    let output = folder.tensact(&line);
    assert!(output.status.success());
    let said = stderr(&output);
    assert!(said.contains("warning: the instruction has") && said.contains("cut to 16"), "{said}");
    let warnings = folder.json(&format!("{line} --json"))["warnings"].to_string();
    assert!(warnings.contains("cut to 16"), "{warnings}");
}

#[test]
fn files_without_the_policys_inputs_are_refused() {
    let folder = Folder::new();
    for line in ["verify tiny --reference", "infer --out actions.npy --checkpoint tiny --tensors"] {
        let weights = format!("{line} tiny/model.safetensors");
        folder.refuses(&weights, &["tiny/model.safetensors has no tensor `in.lang_tokens`", "expected"]);
        folder.refuses(&format!("{line} odd.png"), &["odd.png is corrupt"]);
    }
}

#[test]
fn a_reader_that_stops_early_is_no_reason_to_panic() {
    let folder = Folder::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = folder.command("inspect tiny").stdout(writer).output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}
