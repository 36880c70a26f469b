//! `tensact check`: a deployment file against its board and checkpoint.

use std::path::PathBuf;

use clap::Args;
use miette::{GraphicalReportHandler, miette};
use tensact::topology::check::Severity;
use tensact::topology::{CheckReport, Deployment};

use super::policy_sizes::deployed_sizes;
use super::print_json;
use super::table::table;

/// Say everything that is wrong with a deployment file, or how fast it will be; exit with 1 when it cannot run.
#[derive(Args)]
#[command(after_help = "Examples:\n  tensact check configs/galaxy-bh.toml\n  tensact check mine.toml --json")]
pub(super) struct Check {
    /// The deployment file.
    #[arg(value_name = "DEPLOYMENT")]
    deployment: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> miette::Result<()> {
        let deployment = Deployment::read(&self.deployment)?;
        let board = deployment.load_board()?;
        let sizes = deployed_sizes(&deployment, &self.deployment)?;
        let report = CheckReport::new(&deployment, &board, &sizes);
        if self.json {
            print_json(&report)?;
        } else {
            show_findings(&report, &deployment)?;
            print(&report);
        }
        if report.runs() { Ok(()) } else { std::process::exit(1) }
    }
}

/// Every finding with the text of the file it is about.
fn show_findings(report: &CheckReport, deployment: &Deployment) -> miette::Result<()> {
    let handler = GraphicalReportHandler::new();
    for finding in &report.findings {
        let mut text = String::new();
        let diagnostic = finding.diagnostic(deployment);
        handler.render_report(&mut text, diagnostic.as_ref()).map_err(|error| miette!("{error}"))?;
        eprintln!("{}{text}", if finding.severity == Severity::Warning { "warning" } else { "error" });
    }
    Ok(())
}

fn print(report: &CheckReport) {
    let (Some(latency_ms), Some(requests_per_s)) = (report.latency_ms, report.requests_per_s) else {
        say!("{}: cannot run as written", report.board);
        return;
    };
    let mut rows = table(&["pipelines", "latency ms", "requests/s each", "busiest chip", "its ms a request"]);
    let mut start = 0;
    for group in report.pipelines.chunk_by(|a, b| a.latency_ms == b.latency_ms) {
        let (end, first) = (start + group.len() - 1, &group[0]);
        rows.add_row([
            if start == end { start.to_string() } else { format!("{start} to {end}") },
            format!("{:.1}", first.latency_ms),
            format!("{:.1}", first.requests_per_s),
            first.bottleneck_chip.to_string(),
            format!("{:.1}", first.bottleneck_ms),
        ]);
        start = end + 1;
    }
    say!("{rows}");
    say!("{}: estimated {latency_ms:.1} ms, {requests_per_s:.1} requests/s", report.board);
}
