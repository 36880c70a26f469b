//! Half an hour of robots that vanish, stall, flood and come back, and of strangers that are no robots.

use futures_util::StreamExt as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Duration, Instant, sleep};

use super::robot::{Told, observation, with};
use super::*;
use crate::wire::{Value, write_msgpack};

const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

/// What a client does, over and over.
#[derive(Debug, Clone, Copy)]
enum Habit {
    /// Asks, waits, goes after a while, comes back.
    Good,
    /// Asks and is gone before it is answered.
    Vanishes,
    /// Asks and never reads, nor says anything more.
    Stalls,
    /// Sends without reading until it is told to go.
    Floods,
    /// Sends what is no observation.
    Babbles,
    /// Begins a request and does not end it.
    Dawdles,
    /// Asks over HTTP and hangs up.
    Knocks,
}

const HABITS: [Habit; 7] = [
    Habit::Good,
    Habit::Vanishes,
    Habit::Stalls,
    Habit::Floods,
    Habit::Babbles,
    Habit::Dawdles,
    Habit::Knocks,
];

async fn live(site: Arc<Site>, habit: Habit, seed: u64, expected: Arc<Vec<Vec<f32>>>) -> u64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut answers = 0;
    let end = Instant::now() + HALF_AN_HOUR;
    while Instant::now() < end {
        let pause = Duration::from_millis(random.random_range(100..5000));
        let number = random.random_range(0..expected.len());
        match habit {
            Habit::Good => {
                let mut robot = site.robot().await;
                for _ in 0..random.random_range(1..20) {
                    match robot.ask(&observation(number as u32)).await {
                        Ok(actions) => {
                            assert_eq!(actions, expected[number]);
                            answers += 1;
                        }
                        // The queue may be full, and says so.
                        Err(Told::Refusal(_)) => {}
                        Err(told) => panic!("{told:?}"),
                    }
                    sleep(pause / 10).await;
                }
            }
            Habit::Vanishes => {
                let mut robot = site.robot().await;
                robot.send(write_msgpack(&observation(number as u32))).await;
                sleep(pause / 1000).await;
            }
            Habit::Stalls => {
                let mut robot = site.robot().await;
                for _ in 0..random.random_range(1..60) {
                    robot.send(write_msgpack(&observation(number as u32))).await;
                }
                sleep(pause * 60).await;
            }
            Habit::Floods => {
                let robot = site.robot().await;
                let slow = write_msgpack(&with(number as u32, "num_steps", Value::Integer(100)));
                let (mut sender, mut receiver) = robot.socket.split();
                let flood = async {
                    use futures_util::SinkExt as _;
                    while sender.send(slow.clone().into()).await.is_ok() {}
                };
                tokio::select! {
                    () = flood => {}
                    () = async { while receiver.next().await.is_some() { sleep(pause).await } } => {}
                }
            }
            Habit::Babbles => {
                let mut robot = site.robot().await;
                for _ in 0..20 {
                    let length = random.random_range(0..200);
                    robot.send((0..length).map(|_| random.random()).collect()).await;
                    assert!(matches!(robot.receive().await, Err(Told::Refusal(_))));
                }
            }
            Habit::Dawdles => {
                let mut stream = site.dial();
                stream.write_all(b"POST /v1/actions HTTP/1.1\r\ncontent-").await.unwrap();
                if random.random() {
                    let rest = b"type: application/json\r\ncontent-length: 100\r\n\r\n{";
                    stream.write_all(rest).await.unwrap();
                }
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
            }
            Habit::Knocks => {
                let mut stream = site.dial();
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
                if random.random() {
                    let _ = stream.read_u8().await;
                }
            }
        }
        sleep(pause).await;
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn half_an_hour_of_bad_company_leaves_nothing_behind() {
    let limits = "[batching]\nmax_requests = 4\nmax_in_flight = 8\n[admission]\nqueue = 16";
    let site = Arc::new(Site::with_limits(Config::default(), limits).await);
    let mut robot = site.robot().await;
    let mut expected = Vec::new();
    for number in 0..4 {
        expected.push(robot.ask(&observation(number)).await.unwrap());
    }
    drop(robot);
    site.assert_empty().await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let holders = Arc::strong_count(&site.serving);

    let expected = Arc::new(expected);
    let clients = (0..3 * HABITS.len()).map(|client| {
        let habit = HABITS[client % HABITS.len()];
        tokio::spawn(live(Arc::clone(&site), habit, client as u64, Arc::clone(&expected)))
    });
    let clients: Vec<_> = clients.collect();
    let mut answers = 0;
    for client in clients {
        answers += client.await.unwrap();
    }
    assert!(answers > 1000, "good robots were answered {answers} times");

    site.assert_empty().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks);
    assert_eq!(Arc::strong_count(&site.serving), holders);
}
