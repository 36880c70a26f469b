//! Numbers for Prometheus.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tensact::{Stats, Timings};

use crate::openpi::Answer;
use crate::serving::Failure;

/// Upper bounds in seconds, from a fast board to a policy on a CPU.
const BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    pipeline: usize,
}

/// What the server counts itself, and what it asks the pipeline for when somebody looks.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    durations: Family<Part, Histogram, fn() -> Histogram>,
    pub(crate) connections: Gauge,
    pub(crate) refused: Counter,
    pub(crate) sessions: Gauge,
    waiting: Gauge,
    in_service: Family<Of, Gauge>,
    in_flight: Family<Of, Gauge>,
    busy: Family<SliceOf, Gauge<f64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SliceOf {
    pipeline: usize,
    stage: String,
    layers: String,
    chips: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tensact");
        let buckets: fn() -> Histogram = || Histogram::new(BUCKETS);
        let new = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(buckets),
            connections: Gauge::default(),
            refused: Counter::default(),
            sessions: Gauge::default(),
            waiting: Gauge::default(),
            in_service: Family::default(),
            in_flight: Family::default(),
            busy: Family::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Observations by what became of them", new.requests.clone());
        let what = "Parts of answered requests, and the whole in the pipeline and in the server, in seconds";
        registry.register("request_duration_seconds", what, new.durations.clone());
        registry.register("connections", "Open connections", new.connections.clone());
        registry.register("connections_refused", "Connections above a limit", new.refused.clone());
        registry.register("sessions", "Robots that are connected by websocket", new.sessions.clone());
        registry.register("waiting", "Observations that wait for a pipeline", new.waiting.clone());
        let what = "1 for a pipeline that takes requests, 0 for one that was given up";
        registry.register("pipeline_in_service", what, new.in_service.clone());
        registry.register("pipeline_in_flight", "Requests that a pipeline works on", new.in_flight.clone());
        let what = "Seconds that a slice has computed since the start";
        registry.register("slice_busy_seconds", what, new.busy.clone());
        Self { registry, ..new }
    }
}

impl Metrics {
    /// Counts a request that has ended.
    pub(crate) fn record(&self, answer: &Result<Answer, Failure>) {
        let outcome = answer.as_ref().map_or_else(Failure::outcome, |_| "done");
        self.requests.get_or_create(&Outcome { outcome }).inc();
        let Ok(Answer { chunk, took, .. }) = answer else { return };
        let Timings { preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, total_ms } = chunk.timings;
        let parts = [
            ("preprocess", preprocess_ms),
            ("queue", queue_ms),
            ("vision", vision_ms),
            ("prefix", prefix_ms),
            ("denoise", denoise_ms),
            ("pipeline", total_ms),
            ("server", took.as_secs_f64() * 1e3),
        ];
        for (part, ms) in parts {
            self.durations.get_or_create(&Part { part }).observe(ms / 1e3);
        }
    }

    /// Counts a request that nobody waits for any more.
    pub(crate) fn cancelled(&self) {
        self.requests.get_or_create(&Outcome { outcome: "cancelled" }).inc();
    }

    /// Everything, in the text format of OpenMetrics.
    pub(crate) fn text(&self, stats: Option<&Stats>) -> String {
        if let Some(stats) = stats {
            self.look(stats);
        }
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn look(&self, stats: &Stats) {
        self.waiting.set(stats.waiting as i64);
        for (pipeline, seen) in stats.pipelines.iter().enumerate() {
            let of = Of { pipeline };
            self.in_service.get_or_create(&of).set(seen.in_service.into());
            self.in_flight.get_or_create(&of).set(seen.in_flight as i64);
            for slice in &seen.slices {
                let chips: Vec<String> = slice.chips.iter().map(ToString::to_string).collect();
                let of = SliceOf {
                    pipeline,
                    stage: slice.stage.to_string(),
                    layers: slice.layers.to_string(),
                    chips: chips.join(","),
                };
                self.busy.get_or_create(&of).set(slice.busy_ms / 1e3);
            }
        }
    }
}
