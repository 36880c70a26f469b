//! `tensact bench-serve`: many robots that ask a policy server, and how long it took.

mod print;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use miette::miette;
use tensact::ProfileChoice;
use tensact_server::load::{
    self, Access, Content, Endpoint, Group, IMAGE_SIDE_MAX, LoadError, LoadReport, Plan, Progress, Rate,
};
use tensact_server::trace::{Full, Recording, Run, Subject};
use tokio::time::interval;

use super::output::check_folder;
use super::trace::{TraceOut, finish};
use super::{print_json, progress, runtime, span_of_time, told};

/// Most robots of one program: each takes a port and an open file.
const ROBOTS_MAX: i64 = 20_000;

/// Let robots send observations to a policy server, and measure how long they wait for actions.
///
/// Each robot is a connection that speaks as openpi's client does: it sends an observation, waits for the answer, and sends
/// the next. Servers of openpi's protocol other than Tensact's are measured as well; what they do not report is absent.
#[derive(Args)]
#[command(
    name = "bench-serve",
    after_help = "Examples:
  tensact bench-serve --robots 32 --rate 10 --profile libero --duration 60s
  tensact bench-serve --url wss://robots.example --ca-cert ca.pem --robots 8        # as fast as robots are answered
  tensact bench-serve --robots 4 --rate 5 --deadline 200ms --histogram latency.svg --json"
)]
pub(super) struct BenchServe {
    /// The server: ws://, wss://, http:// or https://.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8000")]
    url: Endpoint,
    /// Robots that send observations at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=ROBOTS_MAX))]
    robots: u32,
    /// Observations that each robot sends in a second. While one is unanswered the robot waits, and skips its turn.
    /// Without a rate, each sends the next observation as soon as it is answered (a closed loop).
    #[arg(long, value_name = "HZ")]
    rate: Option<Rate>,
    /// The robots: libero, droid, aloha, generic, or a TOML file. Unless given, those that the server says it serves,
    /// else generic.
    #[arg(long, value_name = "NAME|FILE")]
    profile: Option<String>,
    /// Height and width of the images, which are noise.
    #[arg(long, value_name = "PIXELS", default_value_t = 224)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=IMAGE_SIDE_MAX as i64))]
    image_size: u32,
    /// The instruction.
    #[arg(long, value_name = "TEXT", default_value = "pick up the red block")]
    prompt: String,
    /// Denoising steps; the server's unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Time to answer, such as 100ms. The server is told, and answers that take longer count as late.
    #[arg(long, value_name = "TIME", value_parser = span_of_time)]
    deadline: Option<Duration>,
    /// For how long robots send, such as 60s.
    #[arg(long, value_name = "TIME", value_parser = span_of_time, default_value = "60s")]
    duration: Duration,
    /// Most observations of all robots together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// How long answers are waited for after the last observation.
    #[arg(long, value_name = "TIME", value_parser = span_of_time, default_value = "60s")]
    grace: Duration,
    /// Time to connect, until the server has sent its metadata.
    #[arg(long, value_name = "TIME", value_parser = span_of_time, default_value = "10s")]
    timeout: Duration,
    /// The key that the server asks for.
    #[arg(long, value_name = "KEY", env = "TENSACT_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// PEM file of authorities that vouch for a wss:// server; the public ones unless given.
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// Seed of images and states.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write a picture of how end-to-end latencies are spread.
    #[arg(long, value_name = "FILE.svg", value_parser = svg_file)]
    histogram: Option<PathBuf>,
    #[command(flatten)]
    trace: TraceOut,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A file that can be written, before minutes are spent on what is to stand in it.
fn svg_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_none_or(|extension| extension != "svg") {
        return Err("expected a name that ends in .svg".into());
    }
    check_folder(&path)?;
    Ok(path)
}

impl BenchServe {
    pub(super) fn run(self) -> miette::Result<()> {
        let mut plan = self.plan()?;
        let trace = self.trace.create()?.map(|trace| {
            let subject = Subject::Robots { server: self.url.to_string(), robots: self.robots as usize };
            trace.start(&Run::new("tensact bench-serve", subject), Full::LeaveOut)
        });
        let trace = trace.transpose()?;
        plan.trace = trace.as_ref().map(Recording::clients);
        let report = runtime()?.block_on(watched(plan)).map_err(unreachable);
        finish(trace)?;
        let report = report?;
        if let Some(path) = &self.histogram {
            draw(&report, path)?;
        }
        if self.json {
            print_json(&report)?;
        } else {
            print::print(&report);
        }
        verdict(&report)
    }

    fn plan(&self) -> miette::Result<Plan> {
        let (key, authorities) = (self.api_key.as_deref(), self.ca_cert.as_deref());
        let access = Access::new(self.url.clone(), key, authorities, self.timeout).map_err(told)?;
        let profile = self.profile.as_deref().map(|name| ProfileChoice::from(name).load());
        let content = Content {
            profile: profile.transpose().map_err(told)?,
            image_side: self.image_size as usize,
            prompt: self.prompt.clone(),
            steps: self.steps,
            deadline: self.deadline,
            seed: self.seed,
        };
        Ok(Plan {
            robots: NonZeroUsize::new(self.robots as usize).unwrap_or(NonZeroUsize::MIN),
            rate: self.rate,
            duration: self.duration,
            requests: self.requests,
            grace: self.grace,
            ..Plan::new(access, content)
        })
    }
}

/// Runs a plan and shows how far it is; Ctrl-C ends it.
async fn watched(plan: Plan) -> Result<LoadReport, LoadError> {
    let spinner = progress::spinner("connecting");
    let robots = plan.robots;
    let seen = Arc::new(Progress::default());
    let show = async {
        let mut moments = interval(Duration::from_millis(200));
        loop {
            moments.tick().await;
            spinner.set_message(format!(
                "{} of {robots} robots connected: {} sent, {} answered, {} refused,",
                seen.robots(),
                seen.observations(),
                seen.answers(),
                seen.refusals()
            ));
        }
    };
    let stop = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without the signal the run goes on to its own end.
            std::future::pending::<()>().await;
        }
    };
    let outcome = tokio::select! {
        outcome = load::run(plan, Arc::clone(&seen), stop) => outcome,
        () = show => unreachable!("it shows the progress for ever"),
    };
    spinner.finish_and_clear();
    outcome
}

fn unreachable(error: LoadError) -> miette::Report {
    match error {
        LoadError::Unreachable { .. } => {
            miette!(help = "is the server running, and does --url name its address and port?", "{error}")
        }
        LoadError::Stopped(_) => told(error),
    }
}

fn draw(report: &LoadReport, path: &Path) -> miette::Result<()> {
    if report.end_to_end_ms.is_empty() {
        return Ok(()); // the verdict says that nothing was answered
    }
    let svg = load::histogram_svg(&report.end_to_end_ms, &print::load(&report.load)).map_err(told)?;
    std::fs::write(path, svg).map_err(|error| miette!("cannot write {}: {error}", path.display()))
}

/// A run in which nothing was answered is a failure.
fn verdict(LoadReport { counts, refusals, bad_answers, connections, .. }: &LoadReport) -> miette::Result<()> {
    if counts.answered > 0 {
        return Ok(());
    }
    let problems =
        [("refused", refusals), ("a bad answer", bad_answers), ("connection", &connections.problems)];
    let most = |(what, groups): (&str, &Vec<Group>)| {
        groups.first().map(|Group { message, count }| (*count, format!("{what}: {message} ({count} times)")))
    };
    let why = problems.into_iter().filter_map(most).max_by_key(|(count, _)| *count);
    let why = why.map_or_else(|| "the run ended before the first answer".into(), |(_, why)| why);
    Err(miette!("none of {} observations was answered with actions: {why}", counts.sent))
}
