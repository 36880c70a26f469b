//! `/metrics`.

use std::collections::BTreeMap;

use super::*;
use crate::telemetry::otlp::Otlp;

fn metrics() -> Metrics {
    Metrics::new(Otlp::default().resource, None)
}

/// The values of everything of one name, by labels.
fn values(text: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let value = |line: &str| {
        let (labels, value) = line.rsplit_once(' ').unwrap();
        (labels.to_owned(), value.parse().unwrap())
    };
    lines.filter(|line| line.starts_with(['{', ' '])).map(value).collect()
}

#[test]
fn everything_has_its_name_unit_and_labels() {
    let metrics = metrics();
    fill(&metrics);
    // Buckets and the resource are looked at elsewhere.
    let left_out = |line: &&str| line.contains("_bucket{") || line.contains("target_info");
    let text: String =
        metrics.text().lines().filter(|line| !left_out(line)).map(|line| format!("{line}\n")).collect();
    insta::assert_snapshot!(text);
}

#[test]
fn what_may_happen_is_there_before_it_does() {
    let text = metrics().text();
    assert_eq!(values(&text, "tensact_requests_total").len(), 11, "{text}");
    assert_eq!(values(&text, "tensact_server_connections_refused_total"), [(String::new(), 0.0)].into());
}

#[test]
fn buckets_are_for_times_and_for_batches() {
    let metrics = metrics();
    fill(&metrics);
    let text = metrics.text();
    let bounds = |name: &str| {
        let of =
            |labels: &String| labels.split("le=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let buckets = values(&text, &format!("{name}_bucket"));
        let mut bounds: Vec<f64> = buckets.keys().map(|labels| of(labels).parse().unwrap()).collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        bounds
    };
    let inf = f64::INFINITY;
    let seconds = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        30.0, inf,
    ];
    for name in ["tensact_request_duration", "tensact_request_part_duration", "tensact_stage_duration"] {
        assert_eq!(bounds(&format!("{name}_seconds")), seconds, "{name}");
    }
    assert_eq!(bounds("tensact_request_time_left_seconds"), [&[0.0], &seconds[..]].concat());
    let batches = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, inf];
    assert_eq!(bounds("tensact_stage_batch_size"), batches);
    // One of the two with a deadline was late.
    let late = values(&text, "tensact_request_time_left_seconds_bucket{le=\"0\"}");
    assert_eq!(late.values().copied().collect::<Vec<f64>>(), [1.0]);
}

#[test]
fn the_parts_of_a_request_make_the_whole() {
    let metrics = metrics();
    metrics.record(&Ok(answer(None)), 20 * MS);
    let parts = values(&metrics.text(), "tensact_request_part_duration_seconds_sum");
    assert_eq!(parts.len(), 7);
    assert!((parts.values().sum::<f64>() - 0.020).abs() < 1e-9, "{parts:?}");
    let postprocess = parts["{tensact_part=\"postprocess\"}"];
    assert!((postprocess - 0.004).abs() < 1e-9, "{postprocess}");
}

#[test]
fn what_is_seen_anew_takes_the_place_of_what_was_seen() {
    let metrics = metrics();
    metrics.look(Instant::now(), stats());
    metrics.look(Instant::now(), Stats { waiting: 0, pipelines: Vec::new(), ..stats() });
    let text = metrics.text();
    assert_eq!(values(&text, "tensact_queue_length"), [(String::new(), 0.0)].into());
    assert!(values(&text, "tensact_pipeline_in_flight").is_empty(), "{text}");
}
