//! A run for people.

use std::time::Duration;

use comfy_table::Table;
use humantime::format_duration;
use tensact::simulate::Latencies;
use tensact_server::load::{Connections, Counts, Group, Jitter, LatencyReport, Load, LoadReport, Metadata};

use crate::cli::table::{facts, table};

/// Prints what came back.
pub(super) fn print(report: &LoadReport) {
    say!("{}", run(report));
    say!("{}", latencies(&report.latency_ms));
    let groups = [
        ("refused", &report.refusals),
        ("bad answers", &report.bad_answers),
        ("connections", &report.connections.problems),
    ];
    if groups.iter().any(|(_, groups)| !groups.is_empty()) {
        say!("{}", messages(&groups));
    }
}

fn run(report: &LoadReport) -> Table {
    let Counts { sent, answered, refused, bad, unanswered, late, skipped } = report.counts;
    let Connections { opened, lost, failed, .. } = report.connections;
    let mut rows = facts(&[&report.load.url, &load(&report.load)]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    if let Some(server) = server(&report.server) {
        row("server", server);
    }
    row(
        "offered",
        format!("{:.1}/s, {sent} observations in {:.2} s", report.offered_per_s, report.elapsed_s),
    );
    row("throughput", format!("{:.1}/s", report.throughput_per_s));
    row("answered", format!("{answered}, of these {late} late"));
    row("not answered", format!("{refused} refused, {bad} bad answers, {unanswered} without an answer"));
    if report.load.rate_hz.is_some() {
        row("skipped", format!("{skipped} turns, because the robot was not ready to send"));
    }
    row("connections", format!("{opened} opened, {lost} lost; {failed} attempts failed"));
    if let Some(Jitter { deviation, successive }) = report.jitter_ms {
        let successive = successive.map_or_else(String::new, |mean| {
            format!(", {mean:.2} ms from one answer of a robot to the next")
        });
        row("jitter", format!("standard deviation {deviation:.2} ms{successive}"));
    }
    rows
}

/// What robots did, in a line.
pub(super) fn load(load: &Load) -> String {
    let Load { robots, rate_hz, duration_s, requests, profile, image_side, steps, deadline_ms, .. } = load;
    let robots = format!("{robots} {profile} robot{}", if *robots == 1 { "" } else { "s" });
    let mut text = match rate_hz {
        Some(rate) => format!("{robots} at {rate}/s"),
        None => format!("{robots}, next observation when answered"),
    };
    text += &format!(" for {}", format_duration(Duration::from_secs_f64(*duration_s)));
    if let Some(requests) = requests {
        text += &format!(", at most {requests} observations");
    }
    text += &format!(", images {image_side} × {image_side}");
    if let Some(steps) = steps {
        text += &format!(", {steps} steps");
    }
    if let Some(deadline) = deadline_ms {
        text += &format!(", deadline {deadline} ms");
    }
    text
}

/// What the server said of itself, if it did.
fn server(metadata: &Metadata) -> Option<String> {
    let Metadata { version, variant, profile, action_dims, horizon, .. } = metadata;
    let parts = [
        version.as_ref().map(|version| format!("Tensact {version}")),
        variant.clone(),
        profile.as_ref().map(|profile| format!("profile {profile}")),
        horizon.zip(*action_dims).map(|(horizon, dims)| format!("{horizon} × {dims} actions")),
    ];
    let said: Vec<String> = parts.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn latencies(latencies: &LatencyReport) -> Table {
    let LatencyReport { model, pipeline, engine, end_to_end } = latencies;
    let mut rows = table(&["latency in ms", "p50", "p90", "p99", "max"]);
    let unreported = "not reported";
    let named = [
        ("model only", model, unreported),
        ("pipeline in process", pipeline, unreported),
        ("server engine", engine, unreported),
        ("client end to end", end_to_end, "-"),
    ];
    for (name, latencies, absent) in named {
        let numbers = match latencies {
            Some(Latencies { p50, p90, p99, max, .. }) => [p50, p90, p99, max].map(|ms| format!("{ms:.2}")),
            None => [absent, "", "", ""].map(String::from),
        };
        rows.add_row(std::iter::once(name.to_owned()).chain(numbers));
    }
    rows
}

fn messages(groups: &[(&str, &Vec<Group>)]) -> Table {
    let mut rows = facts(&["what went wrong", "times", "message"]);
    for (what, groups) in groups {
        for Group { message, count } in *groups {
            rows.add_row([(*what).to_owned(), count.to_string(), message.clone()]);
        }
    }
    rows
}
