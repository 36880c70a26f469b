//! What robots and HTTP clients may rely on.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value as Json;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Duration, Instant};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::robot::{Robot, Told, actions, image, observation, with};
use super::*;
use crate::config::RtcMode;
use crate::wire::{Array, ArrayError, Value, read_msgpack, write_msgpack};

fn refusal(told: Result<Vec<f32>, Told>) -> String {
    match told {
        Err(Told::Refusal(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Waits until the pipeline works on something.
async fn in_flight(site: &Site) {
    let pipeline = &site.serving.policy().unwrap().pipeline;
    while pipeline.stats().await.pipelines[0].in_flight == 0 {
        tokio::task::yield_now().await;
    }
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

#[tokio::test(start_paused = true)]
async fn the_first_frame_is_the_deployments_metadata_and_the_policys() {
    let config = config(|config| {
        config.server.metadata = "reset_pose = [0.0, -1.5]\nname = 'left'".parse().unwrap();
    });
    let site = Site::new(config).await;
    let robot = site.robot().await;
    let Value::Map(metadata) = read_msgpack(&robot.metadata).unwrap() else { panic!("no map") };
    assert_eq!(metadata["name"], Value::text("left"));
    assert_eq!(metadata["reset_pose"].numbers().unwrap().1, [0.0, -1.5]);
    let Value::Map(policy) = &metadata["tensact"] else { panic!("no map") };
    assert_eq!(policy["variant"], Value::text("pi0"));
    assert_eq!(policy["horizon"].whole(), Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_bad_observation_is_answered_and_the_robot_stays_connected() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    let expected = robot.ask(&observation(1)).await.unwrap();
    let float = |value: f32| Value::Array(Array::of_f32(&[8], &[value; 8]).unwrap());
    let previous = |shape: &[usize], value: f32| {
        let actions = Array::of_f32(shape, &vec![value; shape.iter().product()]).unwrap();
        Value::map([("prev_chunk", Value::Array(actions)), ("inference_delay", Value::Integer(1))])
    };
    let empty = Value::Array(Array::of_u8(&[0, 4, 3], vec![]).unwrap());
    for (bad, why) in [
        (with(1, "state", float(f32::NAN)), "`state`"),
        (with(1, "state", float(f32::INFINITY)), "`state`"),
        (with(1, "state", Value::text("none")), "`state`: expected numbers"),
        (with(1, "images/base", empty), "`images/base`: an image of 0x4"),
        (with(1, "images/base", Value::Bytes(b"no picture"[..].into())), "`images/base`: cannot decode"),
        (with(1, "images/base", float(0.5)), "`images/base`: expected [height, width, 3]"),
        (with(1, "prompt", Value::Integer(3)), "`prompt`: expected text"),
        (with(1, "num_steps", Value::Integer(0)), "`num_steps`"),
        (with(1, "num_steps", Value::Float(2.5)), "`num_steps`: expected a whole number"),
        (with(1, "seed", Value::Integer(-1)), "`seed`"),
        (with(1, "noise", float(0.0)), "`noise`"),
        (with(1, "deadline_ms", Value::Integer(0)), "`deadline_ms`"),
        (with(1, "robot_id", Value::text("")), "`robot_id`"),
        (with(1, "robot_id", Value::text("connection 1")), "`robot_id`: names that begin with"),
        (with(1, "request_id", Value::text("a\nb")), "`request_id`"),
        (with(1, "state", Value::Unreadable(ArrayError::Dims(9))), "`state`"),
        (with(1, "state", Value::Array(Array::of_f32(&[9], &[f32::NAN; 9]).unwrap())), "too long: at most 8"),
        (with(1, "prompt", Value::text("a".repeat(20_000))), "`prompt`: text of 20000 bytes"),
        (with(1, "base_0_rgb", image(1)), "`base_0_rgb` is camera `base_0_rgb` already"),
        (with(1, "rtc", Value::map([])), "`rtc`: expected either"),
        (with(1, "rtc", Value::map([("executed", Value::Integer(1))])), "rtc = \"server\""),
        (with(1, "rtc", previous(&[2, 3], 0.0)), "`rtc`: `prev_chunk`: actions of shape [2, 3]"),
        (
            with(1, "rtc", previous(&[11, 8], 0.0)),
            "`rtc`: `prev_chunk`: an array of shape [11, 8] and dtype <f4 is too long: at most 80",
        ),
        (with(1, "rtc", previous(&[1, 8], f32::NAN)), "`rtc`: `prev_chunk`: value 0 of action 0"),
        (Value::map([]), "`state`"),
        (Value::List(vec![]), "expected a map"),
    ] {
        let said = refusal(robot.ask(&bad).await);
        assert!(said.contains(why), "{said}");
        assert_eq!(robot.ask(&observation(1)).await.unwrap(), expected, "after {why}");
    }
    robot.send(vec![0xc1; 100]).await;
    assert!(matches!(robot.receive().await, Err(Told::Refusal(_))));
    robot.socket.send(Message::text("hello")).await.unwrap();
    assert!(matches!(robot.receive().await, Err(Told::Refusal(text)) if text.contains("binary frame")));
    assert_eq!(robot.ask(&observation(1)).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_needed_is_not_in_the_way() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    let expected = robot.ask(&observation(1)).await.unwrap();
    for key in
        ["seed", "noise", "num_steps", "deadline_ms", "robot_id", "request_id", "rtc", "images/left_wrist"]
    {
        assert_eq!(robot.ask(&with(1, key, Value::Nil)).await.unwrap(), expected, "{key}");
    }
    let stamp = Value::map([
        ("__ndarray__", Value::Bool(true)),
        ("dtype", Value::text("<M8[ns]")),
        ("shape", Value::List(vec![])),
        ("data", Value::Bytes([0; 8][..].into())),
    ]);
    assert_eq!(robot.ask(&with(1, "stamp", stamp.clone())).await.unwrap(), expected);
    assert!(
        refusal(robot.ask(&with(1, "state", stamp)).await).contains("`state`: expected numbers, not dtype")
    );
}

#[tokio::test(start_paused = true)]
async fn robots_get_their_own_answers() {
    let site = Site::with_limits(Config::default(), "[batching]\nmax_requests = 4\nmax_in_flight = 8").await;
    let mut alone = site.robot().await;
    let mut expected = Vec::new();
    for number in 0..16 {
        expected.push(alone.ask(&observation(number)).await.unwrap());
    }
    let mut robots = Vec::new();
    for _ in 0..16 {
        robots.push(site.robot().await);
    }
    let asked = robots
        .iter_mut()
        .zip(0..)
        .map(|(robot, number)| async move { robot.ask(&observation(number)).await.unwrap() });
    assert_eq!(futures_util::future::join_all(asked).await, expected);
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]));
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_while_an_observation_is_computed() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    robot.send(write_msgpack(&with(1, "num_steps", Value::Integer(1000)))).await;
    robot.socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(robot.socket.next().await.unwrap().unwrap(), Message::Pong("are you there".into()));
    assert!(robot.receive().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn of_a_robots_waiting_observations_only_the_newest_is_answered() {
    let limits = "[batching]\nmax_requests = 1\nmax_in_flight = 1";
    let site = Site::with_limits(Config::default(), limits).await;
    let mut robot = site.robot().await;
    let expected = [robot.ask(&observation(1)).await.unwrap(), robot.ask(&observation(3)).await.unwrap()];
    robot.send(write_msgpack(&observation(1))).await;
    in_flight(&site).await;
    robot.send(write_msgpack(&observation(2))).await;
    robot.send(write_msgpack(&observation(3))).await;
    assert_eq!(actions(&robot.receive().await.unwrap()), expected[0]);
    assert!(matches!(robot.receive().await, Err(Told::Refusal(text)) if text.contains("newer observation")));
    assert_eq!(actions(&robot.receive().await.unwrap()), expected[1]);
}

#[tokio::test(start_paused = true)]
async fn refusals_tell_the_queues_numbers() {
    let limits = "[batching]\nmax_requests = 1\nmax_in_flight = 1\n[admission]\nqueue = 1";
    let site = Site::with_limits(Config::default(), limits).await;
    let mut robots = [site.robot().await, site.robot().await, site.robot().await];
    for robot in &mut robots {
        robot.send(write_msgpack(&observation(1))).await;
    }
    let [first, second, third] = &mut robots;
    let (first, second, third) = tokio::join!(first.receive(), second.receive(), third.receive());
    let refused: Vec<Told> = [first, second, third].into_iter().filter_map(Result::err).collect();
    let full = "1 observations wait already, and the queue holds 1: ask again later";
    assert_eq!(refused, [Told::Refusal(full.into())]);
    let late = with(1, "deadline_ms", Value::Float(0.01));
    let said = refusal(robots[0].ask(&late).await);
    assert!(said.contains("deadline") || said.contains("wanted after"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn who_never_reads_an_answer_is_told_to_go() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    let slow = write_msgpack(&with(1, "num_steps", Value::Integer(1000)));
    for _ in 0..66 {
        robot.send(slow.clone()).await;
    }
    let told = loop {
        match robot.receive().await {
            Err(Told::Refusal(_)) | Ok(_) => {}
            Err(told) => break told,
        }
    };
    assert!(matches!(&told, Told::Close(1008, reason) if reason.contains("64 observations")), "{told:?}");
}

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

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_finishes_what_it_has_begun() {
    let site = Site::new(Config::default()).await;
    let mut busy = site.robot().await;
    let mut idle = site.robot().await;
    let expected = busy.ask(&observation(1)).await.unwrap();
    idle.ask(&observation(2)).await.unwrap();
    busy.send(write_msgpack(&observation(1))).await;
    in_flight(&site).await;
    site.serving.stop.cancel();
    assert_eq!(actions(&busy.receive().await.unwrap()), expected);
    for robot in [&mut busy, &mut idle] {
        let told = robot.receive().await.unwrap_err();
        assert!(matches!(&told, Told::Close(1001, reason) if reason.contains("shutting down")), "{told:?}");
    }
    site.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn what_takes_longer_than_the_grace_is_given_up() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    robot.send(write_msgpack(&with(1, "num_steps", Value::Integer(1000)))).await;
    in_flight(&site).await;
    site.serving.stop.cancel();
    site.serving.abandon.cancel();
    assert!(matches!(robot.receive().await, Err(Told::Close(1001, _))));
    site.assert_empty().await;
    assert!(site.get("/metrics").await.is_empty(), "nobody is served any more");
    assert!(site.serving.metrics.text(None).contains("tensact_requests_total{outcome=\"cancelled\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_answered() {
    let site = Site::new(Config::default()).await;
    let mut robot = site.robot().await;
    robot.socket.close(None).await.unwrap();
    assert!(matches!(robot.socket.next().await, Some(Ok(Message::Close(_)))));
    assert!(robot.socket.next().await.is_none());
    site.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn robots_that_do_not_read_keep_nobody_waiting() {
    let site = Site::new(Config::default()).await;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut good = site.robot().await;
    let mut stalled = Vec::new();
    for _ in 0..2 * cores {
        let mut robot = Robot::connect(site.dial_narrow()).await;
        // The refusal is longer than the stream, so that the server waits with the observation behind it.
        robot.send(write_msgpack(&with(1, "prompt", Value::Unreadable(ArrayError::Dims(9))))).await;
        for number in 0..4 {
            robot.send(write_msgpack(&with(number, "images/base", Value::text("a".repeat(400))))).await;
        }
        stalled.push(robot);
    }
    let began = Instant::now();
    good.ask(&observation(1)).await.unwrap();
    assert!(began.elapsed() < site.serving.config.server.limits.idle() / 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_deployments_deadline_counts_from_the_arrival_of_a_message() {
    let site = Site::with_limits(Config::default(), "[deadlines]\ndefault_ms = 0.001").await;
    let mut robot = site.robot().await;
    assert!(refusal(robot.ask(&observation(1)).await).contains("are wanted after 0.0 ms"));
    robot.ask(&with(1, "deadline_ms", Value::Integer(1000))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_who_has_a_key_gets_in() {
    let site = Site::loading(Config::default(), ApiKeys::new(["secret"], "test").unwrap());
    site.load("").await;
    for path in ["/metrics", "/v1/metadata", "/nothing"] {
        assert!(site.get(path).await.starts_with("HTTP/1.1 401 "), "{path}");
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert!(site.get(path).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
    let refused = client_async("ws://test/", site.dial()).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 401));
    let head = "GET /v1/metadata HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Api-Key secret\r\n\r\n";
    assert!(site.http(head).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn connections_are_counted() {
    let config = config(|config| {
        config.server.limits.connections = 3;
        config.server.limits.connections_per_address = 2;
    });
    let site = Site::new(config).await;
    let elsewhere = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
    let first = site.robot().await;
    let _second = site.robot().await;
    let told = site.get("/healthz").await;
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("from this address"), "{told}");
    let refused = client_async("ws://test/", site.dial()).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 503));
    let _third = Robot::connect(site.dial_from(elsewhere(1))).await;
    let refused = client_async("ws://test/", site.dial_from(elsewhere(2))).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 503));
    // Who is refused takes nobody's place.
    let crowd: Vec<_> = (0..10).map(|_| site.dial()).collect();
    drop((first, crowd));
    while site.serving.metrics.connections.get() > 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    site.robot().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_too_slow_is_left() {
    let site = Site::new(Config::default()).await;
    let limits = site.serving.config.server.limits;
    let started = Instant::now();
    let mut half = site.dial();
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost").await.unwrap();
    let silent = site.robot().await;
    let mut deaf = Robot::connect(site.dial_narrow()).await;
    let mut talking = site.robot().await;
    deaf.send(write_msgpack(&observation(1))).await;
    // Nor is an answer over HTTP waited for that nobody reads.
    let mut unread = site.dial_narrow();
    unread.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    // A robot that only answers pings stays.
    let pongs =
        tokio::time::timeout(limits.idle() * 4, async { while talking.socket.next().await.is_some() {} });
    assert!(pongs.await.is_err());
    assert_eq!(site.serving.metrics.sessions.get(), 1);
    assert_eq!(site.serving.metrics.connections.get(), 1);
    assert!(started.elapsed() >= limits.idle());
    drop((half, silent, deaf, unread));
    talking.ask(&observation(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_above_the_limit_closes_the_connection() {
    let site = Site::new(config(|config| config.server.limits.message_bytes = 4096)).await;
    let mut robot = site.robot().await;
    robot.ask(&observation(1)).await.unwrap();
    robot.send(vec![0; 5000]).await;
    let told = robot.receive().await.unwrap_err();
    assert!(matches!(told, Told::Close(1009, _)), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_server_remembers_the_last_chunk_of_a_robot() {
    let config = config(|config| {
        config.robot.rtc = RtcMode::Server;
        config.robot.control_hz = Some(1e6);
    });
    let site = Site::new(config).await;
    let mut remembered = site.robot().await;
    let mut sends = site.robot().await;
    let first = remembered.ask(&observation(1)).await.unwrap();
    let executed =
        with(2, "rtc", Value::map([("executed", Value::Integer(3)), ("inference_delay", Value::Integer(2))]));
    let width = first.len() / 10;
    let rest = Array::of_f32(&[7, width], &first[3 * width..]).unwrap();
    let rtc = Value::map([("prev_chunk", Value::Array(rest)), ("inference_delay", Value::Integer(2))]);
    let expected = sends.ask(&with(2, "rtc", rtc)).await.unwrap();
    assert_eq!(remembered.ask(&executed).await.unwrap(), expected);
    let unguided = sends.ask(&observation(2)).await.unwrap();
    assert_ne!(expected, unguided);
    // Nothing is left of a chunk that was executed to its end.
    let all = with(2, "rtc", Value::map([("executed", Value::Integer(10))]));
    assert_eq!(remembered.ask(&all).await.unwrap(), unguided);
    // Who names no delay gets that of the slowest answer so far, here all that is left.
    let measured = with(2, "rtc", Value::map([("executed", Value::Integer(3))]));
    let rest = Array::of_f32(&[7, width], &unguided[3 * width..]).unwrap();
    let rtc = Value::map([("prev_chunk", Value::Array(rest)), ("inference_delay", Value::Integer(1000))]);
    let expected = sends.ask(&with(2, "rtc", rtc)).await.unwrap();
    assert_eq!(remembered.ask(&measured).await.unwrap(), expected);
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
        in_flight(&site).await;
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
        "tensact_requests_total{outcome=\"done\"} 2",
        "tensact_requests_total{outcome=\"bad_request\"} 1",
        "tensact_request_duration_seconds_count{part=\"denoise\"} 2",
        "tensact_sessions 1",
        "tensact_pipeline_in_service{pipeline=\"0\"} 1",
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
