//! `tensact serve` as it is started: settings from file, environment and command line, and what it refuses.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// An emulated board, so that nothing has to be loaded.
const DEPLOYMENT: &str = "board = 'p150a'\ncheckpoint = 'pi05_base'\n[[pipeline]]\nchips = [0]\n";

fn folder(deployment: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("fleet.toml"), deployment).unwrap();
    folder
}

fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
    command.args(arguments.split_whitespace()).current_dir(folder).env("NO_COLOR", "1");
    let ours = |name: &str| name.starts_with("TENSACT_") || name.starts_with("OTEL_") || name == "RUST_LOG";
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
}

/// A server that runs until it is dropped.
struct Serving {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Serving {
    fn start(command: Command) -> Self {
        let mut serving = Self::listening(command);
        serving.logged("ready");
        serving
    }

    /// A server that may still load its policy.
    fn listening(mut command: Command) -> Self {
        command.args(["--port", "0", "--log-format", "json"]).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut serving = Self { child, log, address: String::new() };
        serving.address = serving.logged("listening")["address"].as_str().unwrap().to_owned();
        serving
    }

    /// The next line of the log with this message.
    fn logged(&mut self, message: &str) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "the log ends without `{message}`");
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"].as_str().unwrap().starts_with(message) {
                return line;
            }
        }
    }

    fn get(&self, path: &str, header: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{header}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(&mut self) {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(kill.success());
    }

    fn metadata(&self) -> Value {
        serde_json::from_str(self.get("/v1/metadata", "").split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn settings_come_from_the_file_then_the_environment_then_the_command_line() {
    let tables = "[robot]\nprofile = 'droid'\ndefault_prompt = 'wave'\ncontrol_hz = 15.0\n\
                  [server]\nport = 1\n[server.metadata]\nreset_pose = [1, 2]\n";
    let folder = folder(&format!("{DEPLOYMENT}{tables}"));
    let mut command = command(folder.path(), "serve fleet.toml --emulate --control-hz 30");
    command.env("TENSACT_DEFAULT_PROMPT", "nod").env("TENSACT_CONTROL_HZ", "20");
    let serving = Serving::start(command);
    let metadata = serving.metadata();
    assert_eq!(metadata["profile"], "droid");
    assert_eq!(metadata["default_prompt"], "nod");
    assert_eq!(metadata["control_hz"], 30.0);
    assert_eq!(metadata["board"], "p150a");
    assert_eq!(metadata["metadata"]["reset_pose"], serde_json::json!([1, 2]));
    assert_ne!(serving.address, "127.0.0.1:1");
}

#[test]
fn keys_of_the_environment_open_the_server() {
    let folder = folder(DEPLOYMENT);
    let mut command = command(folder.path(), "serve fleet.toml --emulate");
    command.env("TENSACT_API_KEYS", "one,two");
    let serving = Serving::start(command);
    assert!(serving.get("/v1/metadata", "").starts_with("HTTP/1.1 401 "));
    assert!(serving.get("/v1/metadata", "authorization: Bearer two\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_termination_is_an_orderly_end() {
    let folder = folder(DEPLOYMENT);
    let mut serving = Serving::start(command(folder.path(), "serve fleet.toml --emulate"));
    serving.terminate();
    serving.logged("shutting down");
    assert!(serving.child.wait().unwrap().success());
}

#[test]
fn a_termination_does_not_wait_for_weights() {
    let folder = folder(DEPLOYMENT);
    // A hub that takes calls and never answers.
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = command(folder.path(), "serve --checkpoint somebody/policy");
    command.env("HF_ENDPOINT", format!("http://{}", hub.local_addr().unwrap())).env("HF_HOME", folder.path());
    let mut serving = Serving::listening(command);
    assert!(serving.get("/healthz", "").ends_with("OK\n"));
    assert!(serving.get("/readyz", "").starts_with("HTTP/1.1 503 "));
    serving.terminate();
    assert!(serving.child.wait().unwrap().success());
}

#[test]
fn a_termination_does_not_wait_for_a_collector() {
    // It takes connections and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for protocol in ["grpc", "http/protobuf"] {
        let folder = folder(DEPLOYMENT);
        let mut command = command(folder.path(), "serve fleet.toml --emulate");
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", deaf.local_addr().unwrap()));
        command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).env("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000");
        let mut serving = Serving::start(command);
        serving.terminate();
        serving.logged("the collector did not take the last telemetry");
        assert!(serving.child.wait().unwrap().success(), "{protocol}");
    }
}

#[test]
fn telemetry_that_cannot_be_sent_as_asked_is_refused() {
    let folder = folder(DEPLOYMENT);
    let mut command = command(folder.path(), "serve fleet.toml --emulate --port 0");
    let output = command.env("OTEL_METRICS_EXPORTER", "console").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("OTEL_METRICS_EXPORTER: it is `console`; expected otlp or none"), "{said}");
    assert!(!said.contains("listening"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn clients_that_vanish_leave_no_file_open() {
    let folder = folder(DEPLOYMENT);
    let serving = Serving::start(command(folder.path(), "serve fleet.toml --emulate"));
    let files = || std::fs::read_dir(format!("/proc/{}/fd", serving.child.id())).unwrap().count();
    serving.get("/healthz", "");
    let before = files();
    let upgrade = "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for round in 0..50 {
        let mut robot = TcpStream::connect(&serving.address).unwrap();
        robot.write_all(upgrade.as_bytes()).unwrap();
        // The answer and the beginning of the first frame.
        robot.read_exact(&mut [0; 128]).unwrap();
        // Some go in the middle of a frame, some without a word.
        robot.write_all(&[0x82, 0xfe, 0x10, 0x00, 1, 2, 3, 4, 5][..round % 10]).unwrap();
        let mut half = TcpStream::connect(&serving.address).unwrap();
        half.write_all(b"GET /metrics HT").unwrap();
    }
    // The kernel tells the server of each when it likes to, and a session ends a moment after its file.
    let patience = std::time::Instant::now();
    while !serving.get("/metrics", "").contains("tensact_server_sessions 0") || files() > before {
        assert!(patience.elapsed().as_secs() < 60, "{} files are open, {before} were before", files());
        std::thread::yield_now();
    }
}

#[test]
fn what_cannot_be_served_is_refused_in_words() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().port();
    let taken = format!("serve fleet.toml --emulate --port {busy}");
    for (tables, arguments, parts) in [
        ("", "serve", &["DEPLOYMENT"][..]),
        ("", "serve none.toml", &["none.toml"]),
        ("[server]\nprot = 1\n", "serve fleet.toml --emulate", &["fleet.toml:6:1", "prot"]),
        ("[robot]\nrtc = 'robot'\n", "serve fleet.toml --emulate", &["fleet.toml:6:7", "client"]),
        ("[server.limits]\nconnections = 0\n", "serve fleet.toml --emulate", &["connections", "at least 1"]),
        ("", "serve fleet.toml --emulate --rtc server", &["control_hz"]),
        ("", "serve fleet.toml --emulate --tls-cert c.pem", &["tls_key"]),
        ("", "serve fleet.toml --emulate --tls-cert c.pem --tls-key k.pem", &["c.pem", "PEM"]),
        ("", "serve fleet.toml --emulate --api-keys keys.txt", &["keys.txt"]),
        ("", "serve fleet.toml --emulate --profile robot", &["no profile `robot`", "libero"]),
        ("", "serve fleet.toml", &["pi05_base"]),
        ("", &taken, &["cannot listen on 127.0.0.1", "another server"]),
    ] {
        let folder = folder(&format!("{DEPLOYMENT}{tables}"));
        let mut command = command(folder.path(), arguments);
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path());
        if busy.to_string() != arguments.rsplit(' ').next().unwrap() && arguments != "serve" {
            command.args(["--port", "0"]);
        }
        let output = command.output().unwrap();
        let said: String = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments}: {}\n{said}", output.status);
        let plain = |text: &str| -> String {
            text.chars().filter(|letter| !letter.is_whitespace() && !"│×╰─▶".contains(*letter)).collect()
        };
        for part in parts {
            assert!(plain(&said).contains(&plain(part)), "{arguments}: {part:?} not in\n{said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}
