//! `tensact simulate`: a deployment on emulated chips, in simulated time.

mod events;
mod print;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use miette::miette;
use tensact::StartError;
use tensact::simulate::{FaultName, PlannedFaults, Report, Scenario, Simulation, Violations, Watch};
use tensact::topology::Deployment;
use tensact_server::load::Rate;
use tensact_server::trace::{Full, Recording, Run, Subject};

use super::policy_sizes::deployed_sizes;
use super::trace::{TraceOut, finish};
use super::{print_json, progress, span_of_time, told};
use events::EventFile;

/// Most faults of one kind.
const FAULTS_MAX: usize = 10_000;

/// Let robots send observations to a deployment whose chips are emulated; nothing waits for real time.
///
/// Actors, queues and scheduler are those that serve; chips take the time that the cost model estimates, and compute
/// digests instead of actions. The same arguments give the same run, event by event.
#[derive(Args)]
#[command(
    name = "simulate",
    after_help = "Examples:
  tensact simulate configs/galaxy-bh.toml --robots 64 --rate 10 --duration 10s --seed 1
  tensact simulate fleet.toml --robots 128 --duration 60s                     # as fast as robots are answered
  tensact simulate fleet.toml --robots 8 --rate 5 --fault crash --fault slow:3 --events events.txt"
)]
pub(super) struct Simulate {
    /// The deployment file.
    #[arg(value_name = "DEPLOYMENT")]
    deployment: PathBuf,
    /// Robots that send observations at the same time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    robots: u32,
    /// Observations that each robot sends in a second, whether it was answered or not. Without a rate, each sends the
    /// next observation as soon as it is answered (a closed loop).
    #[arg(long, value_name = "HZ")]
    rate: Option<Rate>,
    /// For how long robots send, in simulated time, such as 60s.
    #[arg(long, value_name = "TIME", value_parser = span_of_time, default_value = "60s")]
    duration: Duration,
    /// Most observations of all robots together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Time to answer, such as 100ms; the deployment's own (`default_ms` in `[deadlines]`) unless given.
    #[arg(long, value_name = "TIME", value_parser = span_of_time)]
    deadline: Option<Duration>,
    /// Something that goes wrong, once or COUNT times, at random moments and places: crash, error, stall, slow or link.
    #[arg(long, value_name = "KIND[:COUNT]", value_parser = fault)]
    fault: Vec<(FaultName, usize)>,
    /// Let observations differ in cameras, tokens, steps and deadlines, and robots cancel some.
    #[arg(long)]
    mixed: bool,
    /// Seed of everything that is left to chance.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write what happens, a line an event: simulated microseconds and what.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    #[command(flatten)]
    trace: TraceOut,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn fault(text: &str) -> Result<(FaultName, usize), String> {
    let (kind, count) = text.split_once(':').unwrap_or((text, "1"));
    let kind = kind.parse::<FaultName>().map_err(|error| error.to_string())?;
    match count.parse() {
        Ok(count @ 1..=FAULTS_MAX) => Ok((kind, count)),
        _ => Err(format!("`{count}` faults cannot be: expected a number from 1 to {FAULTS_MAX}")),
    }
}

impl Simulate {
    pub(super) fn run(self) -> miette::Result<()> {
        let deployment = Deployment::read(&self.deployment)?;
        let sizes = deployed_sizes(&deployment, &self.deployment)?;
        let simulation = Simulation::new(&deployment, &sizes).map_err(|error| self.refused(error))?;
        let board = deployment.load_board()?;
        let placement = deployment.placement(&sizes, board.arch()).placement;
        let scenario = self.scenario(&deployment)?;
        let kinds: Vec<FaultName> =
            self.fault.iter().flat_map(|&(kind, count)| std::iter::repeat_n(kind, count)).collect();
        let faults = PlannedFaults::draw(&kinds, &placement, self.duration, self.seed);

        let events = self.events.as_deref().map(EventFile::create).transpose()?;
        let trace = self.trace.create()?.map(|trace| {
            let subject = Subject::board(&board.name, "emulated in simulated time", &placement);
            trace.start(&Run::new("tensact simulate", subject), Full::Wait)
        });
        let trace = trace.transpose()?;
        let spinner = progress::spinner("simulating");
        let watch = Watch {
            events: events.as_ref().map(EventFile::sink),
            journal: trace.as_ref().map(Recording::listener),
        };
        let report = simulation.run(&scenario, &faults, watch).map_err(told)?;
        spinner.finish_and_clear();
        finish(trace)?;
        events.map_or(Ok(()), EventFile::finish)?;
        if self.json {
            print_json(&report)?;
        } else {
            print::print(&report, &placement, deployment.batching.max_in_flight);
        }
        verdict(&report)
    }

    fn scenario(&self, deployment: &Deployment) -> miette::Result<Scenario> {
        let default = deployment.deadlines.default_ms.map(|ms| {
            Duration::try_from_secs_f64(ms / 1e3).map_err(|_| {
                miette!(
                    "{}: default_ms in [deadlines] is {ms}: expected a time in milliseconds",
                    self.deployment.display()
                )
            })
        });
        Ok(Scenario {
            robots: self.robots as usize,
            rate_hz: self.rate.map(Rate::per_second),
            duration: self.duration,
            requests: self.requests,
            deadline: self.deadline.map_or_else(|| default.transpose(), |deadline| Ok(Some(deadline)))?,
            mixed: self.mixed,
            seed: self.seed,
        })
    }

    fn refused(&self, error: StartError) -> miette::Report {
        let file = self.deployment.display();
        match error {
            StartError::Deployment { .. } => {
                miette!(
                    help = format!("`tensact check {file}` shows the places in the file"),
                    "{file}: {error}"
                )
            }
            error => told(error),
        }
    }
}

/// A run in which an invariant was broken is a failure, whatever else it shows.
fn verdict(Report { violations, scenario, .. }: &Report) -> miette::Result<()> {
    if violations.none() {
        return Ok(());
    }
    let Violations { unanswered, mixed_up, over_queue, lost, left_over } = violations;
    Err(miette!(
        help = "this is a defect of Tensact, not of the deployment: run it again with --events FILE and look for the \
                request that has no end",
        "invariants were broken with seed {}: {unanswered} requests not answered exactly once, {mixed_up} answered \
         with the actions of another, {over_queue} waiting beyond the queue, {lost} lost on the way, {left_over} left over \
         after the drain",
        scenario.seed
    ))
}
