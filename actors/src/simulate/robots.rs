//! Robots that send observations, and what they get.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tensact_runtime::Tensor;
use tensact_runtime::device::emulated::answer;
use tensact_runtime::model::ModelInput;
use tensact_runtime::model::flow::{Steps, noise};
use tensact_runtime::policy::Sample;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Scenario, Simulation};
use crate::clock::Moment;
use crate::engine::Engine;
use crate::request::Refusal;

/// What became of one request.
pub(super) struct Sent {
    pub(super) at: Moment,
    pub(super) end: Moment,
    pub(super) outcome: Result<(), Refusal>,
    pub(super) cancelled: bool,
    /// The actions were those of another request.
    pub(super) mixed_up: bool,
}

/// Everything random about a request is drawn from its own generator, so that it does not depend on who else draws.
fn generator(seed: u64, robot: usize, frame: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(robot as u64).to_le_bytes());
    key[16..24].copy_from_slice(&frame.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Lets all robots send for the scenario's time, and waits for all answers.
pub(super) async fn run(engine: &Arc<Engine>, simulation: &Simulation, scenario: &Scenario) -> Vec<Sent> {
    let (sent, mut outcomes) = mpsc::unbounded_channel();
    let simulation = Arc::new(simulation.clone());
    let mut robots = JoinSet::new();
    for robot in 0..scenario.robots {
        let robot = Robot {
            number: robot,
            name: format!("robot-{robot}").into(),
            engine: Arc::clone(engine),
            simulation: Arc::clone(&simulation),
            scenario: scenario.clone(),
            sent: sent.clone(),
        };
        robots.spawn(robot.send_all());
    }
    drop(sent);
    let mut all = Vec::new();
    let mut give_up = pin!(engine.clock.wait_until(scenario.duration + UNANSWERED_AFTER));
    loop {
        tokio::select! {
            biased;
            outcome = outcomes.recv() => match outcome {
                Some(outcome) => all.push(outcome),
                None => break,
            },
            // What is not answered by now never will be; the report says so.
            () = &mut give_up => return all,
        }
    }
    while let Some(robot) = robots.join_next().await {
        if let Err(error) = robot
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    all
}

/// Longer than any request waits.
const UNANSWERED_AFTER: Duration = Duration::from_secs(24 * 3600);

struct Robot {
    number: usize,
    name: Arc<str>,
    engine: Arc<Engine>,
    simulation: Arc<Simulation>,
    scenario: Scenario,
    sent: mpsc::UnboundedSender<Sent>,
}

impl Robot {
    async fn send_all(self) {
        let robot = Arc::new(self);
        let Scenario { rate_hz, duration, robots, requests, seed, .. } = robot.scenario;
        // Requests are dealt out evenly.
        let most =
            requests.map_or(u64::MAX, |all| (all + (robots - 1 - robot.number) as u64) / robots as u64);
        let period = rate_hz.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut sending = JoinSet::new();
        let phase: f64 = generator(seed, robot.number, u64::MAX).random();
        for frame in 0..most {
            if let Some(period) = period {
                let due = period.mul_f64(phase + frame as f64);
                if due >= duration {
                    break;
                }
                robot.engine.clock.wait_until(due).await;
                sending.spawn(Arc::clone(&robot).send(frame));
                while sending.try_join_next().is_some() {}
            } else {
                if robot.engine.clock.now() >= duration {
                    break;
                }
                Arc::clone(&robot).send(frame).await;
            }
        }
        sending.join_all().await;
    }

    async fn send(self: Arc<Self>, frame: u64) {
        let Scenario { seed, deadline, mixed, rate_hz, .. } = self.scenario;
        let mut random = generator(seed, self.number, frame);
        let sample = self.sample(&mut random);
        let deadline = match mixed && random.random_bool(0.3) {
            true => Some(Duration::from_millis(random.random_range(1..500))),
            false => deadline,
        };
        let patience =
            (mixed && random.random_bool(0.1)).then(|| Duration::from_millis(random.random_range(0..200)));
        let clock = &self.engine.clock;
        let at = clock.now();
        let robot = rate_hz.map(|_| Arc::clone(&self.name));
        let pending = self.engine.submit(sample.clone(), robot, deadline);
        let outcome = match patience {
            None => Some(pending.outcome().await),
            Some(patience) => tokio::select! {
                biased;
                outcome = pending.outcome() => Some(outcome),
                () = clock.wait(patience) => None,
            },
        };
        let sizes = &self.simulation.sizes;
        let bits = |tensor: &Tensor| tensor.data().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let own = |actions: &Tensor| bits(actions) == bits(&answer(sizes, &sample));
        let sent = Sent {
            at,
            end: clock.now(),
            cancelled: outcome.is_none(),
            mixed_up: matches!(&outcome, Some(Ok(answer)) if !own(&answer.actions)),
            outcome: outcome.unwrap_or(Err(Refusal::Closed)).map(drop),
        };
        let _ = self.sent.send(sent);
        if rate_hz.is_none() {
            // Who is refused at once asks again a little later, as a client would.
            clock.wait(Duration::from_micros(if at == clock.now() { 1000 } else { 0 })).await;
        }
    }

    /// An observation that no other request has.
    fn sample(&self, random: &mut ChaCha8Rng) -> Sample {
        let Simulation { sizes, request, .. } = &*self.simulation;
        let mixed = self.scenario.mixed;
        let cameras = if mixed { random.random_range(0..=request.cameras) } else { request.cameras };
        let steps = if mixed { random.random_range(1..=request.steps) } else { request.steps };
        let tokens =
            if mixed { random.random_range(1..=request.prompt_tokens.max(1)) } else { request.prompt_tokens };
        let mut image = || {
            let values = (0..3).map(|_| random.random()).collect();
            Some(Tensor::new([3, 1, 1], values).expect("three values"))
        };
        let images = (0..cameras).map(|_| image()).collect();
        let tokens = (0..tokens).map(|token| token as u32 % sizes.vocab as u32).collect();
        let state = (0..sizes.state_dim).map(|_| random.random()).collect();
        Sample {
            input: ModelInput { images, tokens, state },
            noise: noise(sizes, random.random()),
            steps: Steps::new(steps).expect("deployments ask for at least one step and not too many"),
            guidance: None,
        }
    }
}
