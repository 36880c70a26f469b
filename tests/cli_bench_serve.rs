//! `tensact bench-serve`: what it prints, writes and returns.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::process::{Command, Output};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value as Json;
use tensact_server::wire::{Array, Value, write_msgpack};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;

/// A server that says the same to every observation; it is gone when the runtime is dropped.
fn server(reply: Message) -> (Runtime, String) {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let reply = reply.clone();
            tokio::spawn(async move {
                let mut socket = accept_async(stream).await.unwrap();
                socket.send(Message::binary(write_msgpack(&Value::map([])))).await.unwrap();
                while let Some(Ok(Message::Binary(_))) = socket.next().await {
                    socket.send(reply.clone()).await.unwrap();
                }
            });
        }
    });
    (runtime, url)
}

fn actions() -> Message {
    let actions = Array::of_f32(&[2, 3], &[0.5; 6]).unwrap();
    Message::binary(write_msgpack(&Value::map([("actions", Value::Array(actions))])))
}

/// Runs `tensact bench-serve` with the words of `line`.
fn bench_serve(url: &str, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensact"));
    command.args(["bench-serve", "--url", url]).args(line.split_whitespace()).env("NO_COLOR", "1");
    command.env_remove("TENSACT_API_KEY").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_server_of_others_is_measured() {
    let (_runtime, url) = server(actions());
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("latency.svg");
    let line = format!("--robots 2 --requests 6 --image-size 8 --histogram {}", picture.display());
    let run = bench_serve(&url, &line);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let printed = text(&run.stdout);
    assert!(printed.contains("6, of these 0 late"), "{printed}");
    assert_eq!(printed.matches("not reported").count(), 3, "{printed}");
    assert!(printed.contains("client end to end"), "{printed}");
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.contains("6 answers"), "{picture}");
}

#[test]
fn programs_get_json() {
    let (_runtime, url) = server(actions());
    let run = bench_serve(&url, "--requests 3 --image-size 8 --profile droid --deadline 1h --json");
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report: Json = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["counts"]["answered"], 3);
    assert_eq!(report["load"]["profile"], "droid");
    assert_eq!(report["latency_ms"]["model"], Json::Null);
    assert!(report["latency_ms"]["end_to_end"]["p99"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_run_without_an_answer_fails_and_says_why() {
    let (_runtime, url) = server(Message::text("overheated"));
    let run = bench_serve(&url, "--requests 4 --image-size 8");
    assert!(!run.status.success());
    assert!(text(&run.stdout).contains("4 refused"), "{}", text(&run.stdout));
    let error = text(&run.stderr);
    assert!(error.contains("none of 4 observations") && error.contains("overheated"), "{error}");
}

#[test]
fn a_server_that_is_not_there_fails_the_run() {
    let (runtime, url) = server(actions());
    drop(runtime);
    let run = bench_serve(&url, "--robots 3");
    assert!(!run.status.success() && run.stdout.is_empty());
    let error = text(&run.stderr);
    assert!(error.contains("no robot could connect") && error.contains("is the server running"), "{error}");
}
