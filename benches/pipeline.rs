//! What a request costs beside its computation: the actors of a three-stage pipeline on their own threads, with devices
//! that compute nothing. Beside it, as the baseline, as many messages between three bare threads.

use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use tensact::simulate::Simulation;
use tensact::topology::{Deployment, ModelSizes, Variant};

const REQUESTS: u64 = 3000;

const DEPLOYMENT: &str = r#"
board = "quietbox-bh"
checkpoint = "pi05_base"
[batching]
max_requests = 1
max_in_flight = 4
[admission]
queue = 2000
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

/// Cameras' tokens, a cache of 18 layers and the answer: what a request sends between threads.
const MESSAGES: [usize; 3] = [1, 18, 1];

fn main() {
    let sizes = ModelSizes::base(Variant::Pi05);
    let deployment = Deployment::parse("three stages", DEPLOYMENT).expect("it is sound");
    let simulation = Simulation::new(&deployment, &sizes).unwrap_or_else(|error| fail(&error));
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|error| fail(&error));
    println!("{:>12} {:>16} {:>16}", "outstanding", "CPU µs/request", "wall µs/request");
    for outstanding in [1, 4, 100, 1000] {
        let cpu = ProcessTime::now();
        let wall = runtime.block_on(simulation.rehearse(REQUESTS, outstanding));
        let wall = wall.unwrap_or_else(|error| fail(&error));
        row(&outstanding.to_string(), cpu.elapsed(), wall);
    }
    let cpu = ProcessTime::now();
    let began = Instant::now();
    bare_threads();
    row("bare threads", cpu.elapsed(), began.elapsed());
}

fn fail(error: &dyn std::error::Error) -> ! {
    eprintln!("{error}");
    std::process::exit(1)
}

fn row(name: &str, cpu: Duration, wall: Duration) {
    let each = |time: Duration| time.as_secs_f64() * 1e6 / REQUESTS as f64;
    println!("{name:>12} {:>16.1} {:>16.1}", each(cpu), each(wall));
}

/// Four requests at a time through three threads that only pass messages on.
fn bare_threads() {
    let (first, a) = flume::bounded::<u64>(4);
    let (second, b) = flume::bounded::<u64>(2 * MESSAGES[1]);
    let (third, c) = flume::bounded::<u64>(4);
    let prefix = std::thread::spawn(move || {
        a.into_iter().all(|request| (0..MESSAGES[1]).all(|_| second.send(request).is_ok()))
    });
    let expert = std::thread::spawn(move || {
        let mut layers = 0;
        b.into_iter().all(|request| {
            layers += 1;
            layers % MESSAGES[1] != 0 || third.send(request).is_ok()
        })
    });
    for request in 0..REQUESTS {
        if request >= 4 {
            let _ = c.recv();
        }
        let _ = first.send(request);
    }
    drop(first);
    c.into_iter().for_each(drop);
    for thread in [prefix, expert] {
        drop(thread.join());
    }
}
