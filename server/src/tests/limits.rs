//! Who gets in, what one client may take from others, and how everything ends.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Duration, Instant};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::robot::{Robot, Told, actions, observation, with};
use super::*;
use crate::wire::{Value, write_msgpack};

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
async fn unanswered_observations_are_weighed() {
    let site = Site::new(config(|config| config.server.limits.message_bytes = 4096)).await;
    let mut robot = site.robot().await;
    robot.send(write_msgpack(&with(1, "num_steps", Value::Integer(1000)))).await;
    for _ in 0..3 {
        robot.send(write_msgpack(&with(1, "prompt", Value::text("a".repeat(3000))))).await;
    }
    let told = robot.receive().await.unwrap_err();
    assert!(matches!(&told, Told::Close(1008, reason) if reason.contains("8192 bytes")), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_finishes_what_it_has_begun() {
    let site = Site::new(Config::default()).await;
    let mut busy = site.robot().await;
    let mut idle = site.robot().await;
    let expected = busy.ask(&observation(1)).await.unwrap();
    idle.ask(&observation(2)).await.unwrap();
    busy.send(write_msgpack(&observation(1))).await;
    site.in_flight().await;
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
    site.in_flight().await;
    site.serving.stop.cancel();
    site.serving.abandon.cancel();
    assert!(matches!(robot.receive().await, Err(Told::Close(1001, _))));
    site.assert_empty().await;
    assert!(site.get("/metrics").await.is_empty(), "nobody is served any more");
    assert!(site.serving.metrics.text().contains("tensact_requests_total{tensact_outcome=\"cancelled\"} 1"));
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
        let keys =
            ["seed", "noise", "num_steps", "deadline_ms", "robot_id", "request_id", "rtc", "state", "prompt"];
        robot.send(write_msgpack(&Value::map(keys.map(|key| (key, Value::List(vec![])))))).await;
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
async fn only_who_has_a_key_gets_in() {
    let site = Site::loading(Config::default(), ApiKeys::new(["secret"], "test").unwrap());
    site.load("").await;
    for path in ["/metrics", "/v1/metadata", "/nothing", "/healthz/", "/healthz/../metrics", "/readyz/x"] {
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
    half.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(started.elapsed() <= 2 * limits.header(), "{:?}", started.elapsed());
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
