//! `tensact plan`: a placement for a board and a goal.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use miette::miette;
use tensact::topology::plan::{Goal, Plan, PlanPoint, PlanRequest, plan};
use tensact::topology::{Calibration, RequestShape, draw};

use super::policy_sizes::PolicyOptions;
use super::print_json;
use super::table::table;
use super::told;
use super::topology::board;

/// Choose what runs where on a board, and say how fast it will be and why.
///
/// The numbers are estimates of the cost model (docs/topology.md shows it beside published measurements). Latencies
/// are those of a request with nothing else in flight.
#[derive(Args)]
#[command(
    name = "plan",
    after_help = "Examples:\n  tensact plan --board galaxy-bh --variant pi05 --goal throughput\n  tensact plan --board p150a --variant pi0 --goal latency --cameras 2 --steps 5\n  tensact plan --board galaxy-bh --variant pi05 --slo 60ms --robots 64 --out fleet.toml"
)]
pub(super) struct PlanCommand {
    /// A board's name, or a descriptor file.
    #[arg(long, value_name = "BOARD|FILE")]
    board: String,
    #[command(flatten)]
    policy: PolicyOptions,
    /// What to plan for; `--slo` and `--robots` are a goal of their own.
    #[arg(long, value_enum, default_value = "latency", conflicts_with_all = ["slo", "robots"])]
    goal: GoalName,
    /// Time from observation to actions that every robot must get, such as 50ms.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "robots")]
    slo: Option<Duration>,
    /// Number of robots.
    #[arg(long, value_name = "N", requires = "slo")]
    robots: Option<usize>,
    /// Time between two requests of one robot.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "500ms")]
    replan: Duration,
    /// Cameras of one observation.
    #[arg(long, value_name = "N", default_value_t = 3)]
    cameras: usize,
    /// Instruction tokens; the policy's longest unless given.
    #[arg(long, value_name = "N")]
    prompt_tokens: Option<usize>,
    /// Denoising steps; the policy's own unless given.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Largest batch to consider.
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_batch: usize,
    /// Allow splitting each layer of the VLM over neighbouring chips.
    #[arg(long)]
    tensor_split: bool,
    /// Write the plan as a deployment file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum GoalName {
    Latency,
    Throughput,
}

impl PlanCommand {
    pub(super) fn run(self) -> miette::Result<()> {
        let board = board(&self.board)?;
        let (sizes, checkpoint) = self.policy.sizes()?;
        let defaults = RequestShape::of(&sizes);
        let request = PlanRequest {
            request: RequestShape {
                cameras: self.cameras,
                prompt_tokens: self.prompt_tokens.unwrap_or(defaults.prompt_tokens),
                steps: self.steps.unwrap_or(defaults.steps),
                ..defaults
            },
            batch_max: self.max_batch,
            tensor_split: self.tensor_split,
            ..PlanRequest::new(&board, &sizes, self.goal(), Calibration::shipped())
        };
        let plan = plan(&request).map_err(told)?;
        if let Some(out) = &self.out {
            std::fs::write(out, plan.deployment_toml(&checkpoint))
                .map_err(|error| miette!("cannot write {}: {error}", out.display()))?;
        }
        if self.json {
            return print_json(&plan);
        }
        say!("{}", draw(&board, Some(plan.chosen.placement())).trim_end());
        print(&plan);
        if let Some(out) = &self.out {
            say!("wrote {}", out.display());
        }
        Ok(())
    }

    fn goal(&self) -> Goal {
        match (self.slo, self.robots) {
            (Some(slo), Some(robots)) => {
                Goal::Slo { slo_ms: milliseconds(slo), robots, replan_ms: milliseconds(self.replan) }
            }
            _ => match self.goal {
                GoalName::Latency => Goal::Latency,
                GoalName::Throughput => Goal::Throughput,
            },
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print(plan: &Plan) {
    let RequestShape { cameras, prompt_tokens, steps, .. } = plan.request;
    say!("\nEstimates for {cameras} cameras, {prompt_tokens} instruction tokens, {steps} steps:");
    let mut rows = table(&["", "pipelines", "chips each", "batch", "latency ms", "requests/s"]);
    for point in &plan.front {
        let mark = if *point == plan.chosen { "chosen" } else { "" };
        rows.add_row(row(mark, point));
    }
    if !plan.front.contains(&plan.chosen) {
        rows.add_row(row("chosen", &plan.chosen));
    }
    say!("{rows}\n{}", plan.chosen.reason);
    if let Some(shortfall) = plan.shortfall() {
        say!("The goal is not met: {shortfall}.");
    }
}

fn row(mark: &str, point: &PlanPoint) -> [String; 6] {
    [
        mark.into(),
        point.pipelines.to_string(),
        point.chips_per_pipeline.to_string(),
        point.batch.to_string(),
        format!("{:.1}", point.latency_ms),
        format!("{:.1}", point.requests_per_s),
    ]
}
