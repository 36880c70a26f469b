//! A simulation for people.

use std::time::Duration;

use comfy_table::{CellAlignment, Table};
use humantime::format_duration;
use tensact::Counts;
use tensact::simulate::{Bound, ChipReport, Fault, FaultKind, Latencies, Report, Scenario};
use tensact::topology::{Placement, StageKind};

use crate::cli::table::{facts, scaled, table};

/// A chip that is busy for this share of the time has no room for more.
const SATURATED: f64 = 0.9;

/// Prints what happened; pipelines of the placement hold `in_flight` requests each.
pub(super) fn print(report: &Report, placement: &Placement, in_flight: usize) {
    say!("{}", run(report));
    say!("{}", chips(&report.chips));
    if !report.faults.0.is_empty() {
        say!("{}", faults(&report.faults.0, placement));
    }
    say!("{}", limit(report, placement.pipelines.len(), in_flight));
}

fn run(report: &Report) -> Table {
    let Report { counts, latency_ms: Latencies { p50, p90, p99, max, .. }, .. } = report;
    let Counts { requests, done, retried, superseded, queue_full, deadline_impossible, .. } = counts;
    let Counts { unavailable, expired, failed, cancelled, .. } = counts;
    let mut rows = facts(&[&format!("{}, emulated", report.board), &load(&report.scenario)]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    row(
        "offered",
        format!("{:.1}/s, {requests} observations in {:.2} s", report.offered_per_s, report.elapsed_s),
    );
    row("throughput", format!("{:.1}/s", report.throughput_per_s));
    if let Some(Bound { requests_per_s, chip, stage, ms }) = report.bound {
        let by = format!("chip {chip}, mostly {stage}, works {ms:.1} ms on a request");
        row("bound", format!("{requests_per_s:.1}/s: {by}"));
    }
    let latencies = format!("p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, max {max:.1} ms");
    row("latency", if *done > 0 { latencies } else { "-".into() });
    row("answered", format!("{done} with actions; attempts made again: {retried}"));
    let refused =
        format!("{superseded} superseded, {queue_full} queue full, {deadline_impossible} would be late");
    row("refused", format!("{refused}, {unavailable} out of service"));
    row("given up", format!("{expired} expired, {failed} failed, {cancelled} cancelled"));
    rows
}

fn load(Scenario { robots, rate_hz, duration, requests, deadline, mixed, seed, .. }: &Scenario) -> String {
    let mut text = match rate_hz {
        Some(rate) => format!("{robots} robots at {rate}/s"),
        None => format!("{robots} robots, each asks again when answered"),
    };
    text += &format!(" for {}, seed {seed}", format_duration(*duration));
    if let Some(requests) = requests {
        text += &format!(", at most {requests} observations");
    }
    if let Some(deadline) = deadline {
        text += &format!(", deadline {}", format_duration(*deadline));
    }
    text + if *mixed { ", mixed" } else { "" }
}

/// Chips with the same stages and the same memory share a row.
fn chips(chips: &[ChipReport]) -> Table {
    let mut groups: Vec<Vec<&ChipReport>> = Vec::new();
    for chip in chips {
        let alike = |group: &&mut Vec<&ChipReport>| {
            (&group[0].stages, group[0].memory_bytes) == (&chip.stages, chip.memory_bytes)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(chip),
            None => groups.push(vec![chip]),
        }
    }
    let mut rows = table(&["chips", "stages", "busy %", "memory each"]);
    if let Some(stages) = rows.column_mut(1) {
        stages.set_cell_alignment(CellAlignment::Left);
    }
    for group in groups {
        let shares = || group.iter().map(|chip| percent(chip.utilisation));
        let (least, most) = (shares().min().unwrap_or(0), shares().max().unwrap_or(0));
        rows.add_row([
            ranges(&group),
            stages(&group[0].stages),
            if least == most { least.to_string() } else { format!("{least} to {most}") },
            scaled(usize::try_from(group[0].memory_bytes).unwrap_or(usize::MAX), "B"),
        ]);
    }
    rows
}

/// `0 to 3, 8`.
fn ranges(chips: &[&ChipReport]) -> String {
    let runs = chips.chunk_by(|a, b| a.chip.0 + 1 == b.chip.0).map(|run| match run {
        [one] => one.chip.to_string(),
        many => format!("{} to {}", many[0].chip, many[many.len() - 1].chip),
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn stages(stages: &[StageKind]) -> String {
    stages.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn percent(share: f64) -> u64 {
    (share * 100.0).round() as u64
}

fn faults(faults: &[Fault], placement: &Placement) -> Table {
    let mut rows = facts(&["planned at", "pipeline", "where", "what"]);
    for Fault { at, pipeline, slice, kind } in faults {
        let slice = &placement.pipelines[*pipeline].slices[*slice];
        let chips = slice.chips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        rows.add_row([
            seconds(*at),
            pipeline.to_string(),
            format!("{} layers {} on chip {chips}", slice.stage, slice.layers),
            match kind {
                FaultKind::Crash => "crash".to_owned(),
                FaultKind::Error => "device error".to_owned(),
                FaultKind::Stall(lasts) => format!("stall of {}", seconds(*lasts)),
                FaultKind::Slow { factor, lasts } => format!("{factor:.1} × slower for {}", seconds(*lasts)),
                FaultKind::LinkDown(lasts) => format!("link down for {}", seconds(*lasts)),
            },
        ]);
    }
    rows
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// What kept the run from more, in a sentence.
fn limit(report: &Report, pipelines: usize, in_flight: usize) -> String {
    let Report { counts, chips, scenario, .. } = report;
    let Some(busiest) = chips.iter().max_by(|a, b| a.utilisation.total_cmp(&b.utilisation)) else {
        return "Nothing ran.".into();
    };
    let busy = format!(
        "chip {} ({}), busy {} %",
        busiest.chip,
        stages(&busiest.stages),
        percent(busiest.utilisation)
    );
    if busiest.utilisation >= SATURATED {
        return format!("Limited by the busiest chip: {busy} of the time.");
    }
    let places = pipelines * in_flight;
    let has_room = scenario.rate_hz.is_some() || scenario.robots <= places;
    if counts.refused() == 0 && has_room {
        return format!(
            "Limited by the offered load: all were answered, the busiest was {busy} of the time."
        );
    }
    if report.waiting_max > 0 {
        let faults = if report.faults.0.is_empty() { "" } else { "the faults and " };
        return format!(
            "Limited by {faults}the number in flight: {in_flight} in each pipeline (max_in_flight), {places} in all; \
             the busiest was {busy} of the time."
        );
    }
    let late = counts.deadline_impossible + counts.expired;
    let cause = if 2 * late >= counts.refused() { "the deadline" } else { "faults" };
    format!("Limited by {cause}: {} got no actions; the busiest was {busy} of the time.", counts.refused())
}
