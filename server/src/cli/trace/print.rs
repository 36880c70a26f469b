//! A run and a request for people.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use tensact::simulate::Latencies;
use tensact::telemetry::RequestTrace;
use tensact::topology::ChipId;
use tensact_server::trace::{ChipShare, Held, Parts, Row, Run, Subject, Summary, WaitShare};

use crate::cli::table::{facts, table};

/// Reasons for waiting that are shown.
const WAITS: usize = 6;
/// A chip that is busy for this share of the time has no room for more.
const SATURATED: f64 = 0.9;

/// Prints what a run's time was spent on.
pub(super) fn run(run: &Run, summary: &Summary) {
    say!("{}", requests(run, summary));
    let Subject::Board { chips: held, .. } = &run.subject else {
        say!("This is what robots saw of the server: the file holds no chips.");
        return;
    };
    if let Some(mean) = parts(summary) {
        say!("{mean}");
    }
    let reasons = summary.waits();
    if !reasons.is_empty() {
        say!("{}", waits(&reasons));
    }
    say!("{}", chips(held, &summary.chips()));
    if let Some(bottleneck) = bottleneck(summary) {
        say!("{bottleneck}");
    }
}

fn requests(run: &Run, summary: &Summary) -> Table {
    let (who, what) = match &run.subject {
        Subject::Board { board, chips_are, .. } => (format!("{board}, {chips_are}"), &run.command),
        Subject::Robots { server, robots } => (format!("{robots} robots of {server}"), &run.command),
    };
    let mut rows = facts(&[&who, &format!("{what}, {:.2} s", summary.took_ms() / 1e3)]);
    let outcomes =
        summary.outcomes().iter().map(|(outcome, count)| format!("{count} {}", outcome.replace('_', " ")));
    let outcomes = outcomes.collect::<Vec<_>>().join(", ");
    rows.add_row([
        "requests".to_owned(),
        if outcomes.is_empty() { "none has ended".into() } else { outcomes },
    ]);
    if let Some(Latencies { mean, p50, p90, p99, max }) = summary.latencies() {
        let latency = format!("mean {mean:.1}, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, max {max:.1} ms");
        rows.add_row(["latency".to_owned(), latency]);
    }
    rows
}

fn parts(summary: &Summary) -> Option<Table> {
    let Parts { preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, transfers_ms, waits_ms } =
        summary.parts()?;
    let names = ["mean ms in", "preprocess", "queue", "vision", "prefix", "denoise", "transfers", "waits"];
    let mut rows = table(&names);
    let parts = [preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, transfers_ms, waits_ms];
    rows.add_row(std::iter::once("answered".to_owned()).chain(parts.map(|ms| format!("{ms:.2}"))));
    Some(rows)
}

fn waits(waits: &[WaitShare]) -> Table {
    let mut rows = table(&["waited for", "share of latency", "ms", "times"]);
    for WaitShare { what, chip, ms, times, share } in waits.iter().take(WAITS) {
        let chip = chip.map_or_else(String::new, |chip| format!(", most on chip {chip}"));
        rows.add_row([
            format!("{what}{chip}"),
            format!("{:.1} %", share * 100.0),
            format!("{ms:.1}"),
            times.to_string(),
        ]);
    }
    rows
}

/// Chips that hold the same share a row; what is counted is a range where they differ.
fn chips(held: &[Held], shares: &BTreeMap<ChipId, ChipShare>) -> Table {
    let mut groups: Vec<(&str, Vec<ChipId>)> = Vec::new();
    for Held { chip, slices } in held {
        match groups.iter_mut().find(|(other, _)| other == slices) {
            Some((_, chips)) => chips.push(*chip),
            None => groups.push((slices, vec![*chip])),
        }
    }
    let mut rows =
        table(&["chips", "hold", "vision %", "prefix %", "expert %", "transfers %", "stalled %", "idle %"]);
    if let Some(held) = rows.column_mut(1) {
        held.set_cell_alignment(CellAlignment::Left);
    }
    for (slices, chips) in groups {
        let idle = ChipShare { idle: 1.0, ..ChipShare::default() };
        let of = |part: fn(&ChipShare) -> f64| {
            let percent =
                chips.iter().map(|chip| (part(shares.get(chip).unwrap_or(&idle)) * 100.0).round() as u64);
            let (least, most) = (percent.clone().min().unwrap_or(0), percent.max().unwrap_or(0));
            if least == most { least.to_string() } else { format!("{least} to {most}") }
        };
        rows.add_row([
            names(&chips),
            slices.to_owned(),
            of(|chip| chip.vision),
            of(|chip| chip.prefix),
            of(|chip| chip.expert),
            of(|chip| chip.transfers),
            of(|chip| chip.stalled),
            of(|chip| chip.idle),
        ]);
    }
    rows
}

/// `0 to 3, 8`.
fn names(chips: &[ChipId]) -> String {
    let runs = chips.chunk_by(|a, b| a.0 + 1 == b.0).map(|run| match run {
        [first, .., last] => format!("{first} to {last}"),
        one => one.iter().map(ToString::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// The chip that has least time left, in a sentence.
pub(super) fn bottleneck(summary: &Summary) -> Option<String> {
    let chips = summary.chips();
    let (chip, share) = chips.iter().max_by(|a, b| a.1.busy().total_cmp(&b.1.busy()))?;
    let busy = share.busy() * 100.0;
    let most = format!("chip {chip}, busy {busy:.0} % of the time, mostly with {}", share.most());
    if share.busy() >= SATURATED {
        return Some(format!("The bottleneck is {most}."));
    }
    let wait = summary.waits().first().map_or_else(String::new, |wait| {
        format!("; requests waited most for {}, {:.0} % of their latency", wait.what, wait.share * 100.0)
    });
    Some(format!("No chip is full: the busiest is {most}{wait}."))
}

/// Prints a request's critical path.
pub(super) fn request(title: &str, request: &RequestTrace, path: &[Row]) {
    let robot = request.robot.as_deref().map_or_else(String::new, |robot| format!(" of robot {robot}"));
    let latency = request.latency().as_secs_f64() * 1e3;
    let header = format!("{title}: {}{robot}, {} in {latency:.2} ms", request.trace, request.outcome);
    let mut rows = table(&["from", "to", "ms", "times", &header]);
    if let Some(what) = rows.column_mut(4) {
        what.set_cell_alignment(CellAlignment::Left);
    }
    for Row { from_ms, to_ms, ms, times, what } in path {
        let times = if *times == 1 { String::new() } else { format!("{times} ×") };
        rows.add_row([
            format!("{from_ms:.2}"),
            format!("{to_ms:.2}"),
            format!("{ms:.2}"),
            times,
            what.clone(),
        ]);
    }
    say!("{rows}");
}
