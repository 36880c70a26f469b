//! One file per subcommand, and what they share: how a checkpoint is named, how tables and progress are shown.

/// Prints a line, and ends quietly when nobody reads any more, as in `tensact boards | head -1`.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::write_line(format_args!($($text)*)) };
}

mod bench_serve;
mod boards;
mod check;
mod demo;
mod device;
mod infer;
mod inspect;
mod output;
mod plan;
mod policy_sizes;
mod progress;

mod serve;
mod simulate;
mod synth;
mod table;
mod topology;
mod trace;
mod ttnn;
mod verify;

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tensact::runtime::checkpoint::{Checkpoint, hub};
use tensact::runtime::device::host::{ComputeDtype, HostDevice};

/// Serves the vision-language-action policies π0 and π0.5.
#[derive(Parser)]
#[command(name = "tensact", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Infer(infer::Infer),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Synth(synth::Synth),
    Boards(boards::Boards),
    Topology(topology::Topology),
    Plan(plan::PlanCommand),
    Check(check::Check),
    Simulate(simulate::Simulate),
    Trace(trace::Trace),
    Ttnn(ttnn::Ttnn),
    Serve(serve::Serve),
    BenchServe(bench_serve::BenchServe),
}

impl Cli {
    pub(crate) fn run(self) -> miette::Result<()> {
        match self.command {
            Command::Demo(command) => command.run(),
            Command::Infer(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Synth(command) => command.run(),
            Command::Boards(command) => command.run(),
            Command::Topology(command) => command.run(),
            Command::Plan(command) => command.run(),
            Command::Check(command) => command.run(),
            Command::Simulate(command) => command.run(),
            Command::Trace(command) => command.run(),
            Command::Ttnn(command) => command.run(),
            Command::Serve(command) => command.run(),
            Command::BenchServe(command) => command.run(),
        }
    }
}

/// How the host computes.
#[derive(Args)]
struct HostOptions {
    /// Type in which products take their factors: bf16 or f32. Sums are f32 in either.
    #[arg(long, value_name = "TYPE", default_value_t = ComputeDtype::Bf16)]
    dtype: ComputeDtype,
    /// Worker threads; all cores unless given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl HostOptions {
    fn device(&self) -> miette::Result<Arc<HostDevice>> {
        HostDevice::new(self.threads, self.dtype).map_err(told)
    }
}

/// A time such as 500ms, for arguments.
fn span_of_time(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(366 * 24 * 3600);
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() || duration > MAX {
        return Err("expected more than 0 and at most 366 days".into());
    }
    Ok(duration)
}

/// Threads that actors run on.
fn runtime() -> miette::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().map_err(told)
}

/// An error as its own words say it; they hold the cause already.
fn told(error: impl std::error::Error) -> miette::Report {
    miette::miette!("{error}")
}

/// Opens a checkpoint by path or Hugging Face id, which is downloaded with a progress bar.
fn open_checkpoint(reference: &str) -> miette::Result<Checkpoint> {
    let mut bar: Option<(String, indicatif::ProgressBar)> = None;
    let path = hub::resolve(reference, &mut |download| {
        if bar.as_ref().is_none_or(|(file, _)| *file != download.file) {
            bar = Some((download.file.clone(), progress::bytes(download.total_bytes, &download.file)));
        }
        if let Some((_, bar)) = &bar {
            bar.set_position(download.done_bytes);
        }
    });
    if let Some((_, bar)) = bar {
        bar.finish_and_clear();
    }
    Checkpoint::open(&path.map_err(told)?).map_err(told)
}

/// What `say!` does.
fn write_line(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        let quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !quiet {
            eprintln!("cannot write the output: {error}");
        }
        std::process::exit(if quiet { 0 } else { 1 });
    }
}

/// Prints a value as JSON, for programs.
fn print_json(value: &impl serde::Serialize) -> miette::Result<()> {
    say!("{}", serde_json::to_string_pretty(value).map_err(told)?);
    Ok(())
}

/// Tells people of something that stops nothing.
fn warn(what: &str) {
    eprintln!("warning: {what}");
}
