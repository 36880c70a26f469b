//! What clients over HTTP may rely on.

use serde_json::Value as Json;
use tokio::io::AsyncWriteExt as _;

use super::robot::{Robot, observation, with};
use super::*;
use crate::wire::{Value, write_msgpack};

#[tokio::test(start_paused = true)]
async fn while_weights_are_loaded_robots_wait_and_others_are_told() {
    let site = Site::loading(Config::default(), ApiKeys::default());
    assert!(site.get("/healthz").await.ends_with("\r\n\r\nOK\n"));
    let ready = site.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("loading weights"), "{ready}");
    assert!(site.get("/v1/metadata").await.starts_with("HTTP/1.1 503 "));
    let stream = site.dial();
    let (robot, ()) = tokio::join!(Robot::connect(stream), site.load(""));
    assert!(!robot.metadata.is_empty());
    assert!(site.get("/readyz").await.starts_with("HTTP/1.1 200 "));
}

/// A request over HTTP, with its body.
fn post(kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /v1/actions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test(start_paused = true)]
async fn single_requests_are_answered_as_robots_are() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    let png = include_bytes!("../../../runtime/tests/fixtures/image/odd.png");
    let expected = robot.ask(&with(1, "images/base", Value::Bytes(png[..].into()))).await.unwrap();
    let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, png);
    for image in [encoded.clone(), format!("data:image/png;base64,{encoded}")] {
        let body = serde_json::json!({
            "images": { "base": image }, "state": vec![1.0; 8], "prompt": "pick up the red block", "request_id": "r1",
        });
        let request =
            String::from_utf8(post("application/json; charset=utf-8", body.to_string().as_bytes())).unwrap();
        let answer = site.http(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        let body: Json = serde_json::from_str(body).unwrap();
        assert_eq!(body["request_id"], "r1");
        let rows = body["actions"].as_array().unwrap().iter();
        let values: Vec<f32> = rows
            .flat_map(|row| row.as_array().unwrap())
            .map(|value| value.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(values, expected);
    }
    for (kind, body, status) in [
        ("application/json", &b"{}"[..], "400"),
        ("application/json", b"{", "400"),
        ("application/msgpack", b"\xc1", "400"),
        ("text/plain", b"", "415"),
        (
            "application/json",
            br#"{"rtc": {"executed": 1}, "state": [0,0,0,0,0,0,0,0], "prompt": "go"}"#,
            "400",
        ),
    ] {
        let request = String::from_utf8_lossy(&post(kind, body)).into_owned();
        let answer = site.http(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(r#"{"error":{"kind":"bad_request""#), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn single_requests_are_refused_with_a_status() {
    let limits = "[batching]\nmax_requests = 1\nmax_in_flight = 1\n[admission]\nqueue = 1";
    let site = Site::with_limits(config(|config| config.server.limits.message_bytes = 4096), limits).await;
    let mut robots = [site.robot().await, site.robot().await];
    for robot in &mut robots {
        robot.send(write_msgpack(&with(1, "num_steps", Value::Integer(1000)))).await;
        site.in_flight().await;
    }
    while site.serving.policy().unwrap().pipeline.stats().await.waiting == 0 {
        tokio::task::yield_now().await;
    }
    let ask = async |message: &Value<'_>| {
        let mut stream = site.dial();
        stream.write_all(&post("application/msgpack", &write_msgpack(message))).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let full = ask(&observation(1)).await;
    assert!(full.starts_with("HTTP/1.1 429 ") && full.contains("\"waiting\":1,\"capacity\":1"), "{full}");
    assert!(full.contains("retry-after: 1"), "{full}");
    for robot in &mut robots {
        robot.receive().await.unwrap();
    }
    let late = ask(&with(1, "deadline_ms", Value::Float(0.5))).await;
    assert!(late.starts_with("HTTP/1.1 429 ") && late.contains("\"expected_ms\""), "{late}");
    let long = ask(&with(1, "prompt", Value::text("a".repeat(5000)))).await;
    assert!(long.starts_with("HTTP/1.1 413 "), "{long}");
    let slow = site
        .http(
            "POST /v1/actions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n\
                          connection: close\r\ncontent-length: 10\r\n\r\n{",
        )
        .await;
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
}

#[tokio::test(start_paused = true)]
async fn what_happened_is_counted() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    robot.ask(&observation(1)).await.unwrap();
    robot.ask(&observation(2)).await.unwrap();
    robot.ask(&Value::Nil).await.unwrap_err();
    let metrics = site.get("/metrics").await;
    for line in [
        "tensact_requests_total{tensact_outcome=\"done\"} 2",
        "tensact_requests_total{tensact_outcome=\"bad_request\"} 1",
        "tensact_request_part_duration_seconds_count{tensact_part=\"denoise\"} 2",
        "tensact_server_sessions 1",
        "tensact_pipeline_in_service{tensact_pipeline=\"0\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn the_openapi_document_is_about_what_there_is() {
    let document: Json = serde_json::from_str(include_str!("../http/openapi.json")).unwrap();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/v1/actions", "/v1/metadata", "/healthz", "/readyz", "/metrics", "/openapi.json"]);
}
