//! What robots may rely on.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::robot::{Told, actions, image, observation, refusal, with};
use super::*;
use crate::config::RtcMode;
use crate::wire::{Array, ArrayError, Value, read_msgpack, write_msgpack};

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
    site.in_flight().await;
    // However long the older one takes to read.
    let large = Array::of_f32(&[1024, 1024, 3], &vec![0.5; 3 << 20]).unwrap();
    robot.send(write_msgpack(&with(2, "images/base", Value::Array(large)))).await;
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
async fn the_deployments_deadline_counts_from_the_arrival_of_a_message() {
    let site = Site::with_limits(Config::default(), "[deadlines]\ndefault_ms = 0.001").await;
    let mut robot = site.robot().await;
    assert!(refusal(robot.ask(&observation(1)).await).contains("are wanted after 0.0 ms"));
    robot.ask(&with(1, "deadline_ms", Value::Integer(1000))).await.unwrap();
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
