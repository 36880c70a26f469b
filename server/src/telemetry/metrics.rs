//! Numbers about requests, stages and chips. Each instrument is made once; Prometheus reads it at `/metrics`, and a
//! collector gets it over OTLP if one is named. `docs/metrics.md` lists them all.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};
use tensact::topology::StageKind;
use tensact::{Stats, Timings};
use tokio::time::Instant;

use super::attribute::{OUTCOME, PART, STAGE};
pub(crate) use super::observed::Level;
use super::observed::Observed;
pub(crate) use super::observed::{ChipMemory, MemoryKind};
use super::otlp::MetricExport;
use crate::failure::Failure;
use crate::openpi::Answer;

/// Upper bounds of durations in seconds, from a fast board to a policy on a CPU.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Upper bounds of batches, in requests.
const REQUESTS: [f64; 11] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0];

/// Everything that may become of a request.
const OUTCOMES: [&str; 11] = [
    "done",
    "bad_request",
    "loading",
    "queue_full",
    "deadline_impossible",
    "superseded",
    "expired",
    "failed",
    "out_of_service",
    "closed",
    "cancelled",
];

/// Content type of [`Metrics::text`].
pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the server counts itself, and what it last saw of the pipeline.
pub(crate) struct Metrics {
    registry: Registry,
    provider: SdkMeterProvider,
    requests: Counter<u64>,
    request_duration: Histogram<f64>,
    part_duration: Histogram<f64>,
    time_left: Histogram<f64>,
    stage_duration: Histogram<f64>,
    stage_batch: Histogram<u64>,
    refused: Counter<u64>,
    /// Open connections.
    pub(crate) connections: Level,
    /// Robots that are connected by websocket.
    pub(crate) sessions: Level,
    observed: Arc<Observed>,
}

impl Metrics {
    /// Instruments that `/metrics` shows, and that are sent to a collector as well if there is an `export`.
    pub(crate) fn new(resource: Resource, export: Option<MetricExport>) -> Self {
        let registry = Registry::new();
        let mut provider = SdkMeterProvider::builder().with_resource(resource);
        let prometheus = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build();
        match prometheus {
            Ok(reader) => provider = provider.with_reader(reader),
            // An empty registry takes everything: it would be a bug, and robots are more important.
            Err(error) => tracing::error!("there will be nothing at /metrics: {error}"),
        }
        if let Some(MetricExport { exporter, interval }) = export {
            provider =
                provider.with_reader(PeriodicReader::builder(exporter).with_interval(interval).build());
        }
        let provider = provider.build();
        let meter = provider.meter("tensact");
        let connections =
            Level::new(&meter, "tensact.server.connections", "{connection}", "Open connections");
        let what = "Robots that are connected by websocket";
        let sessions = Level::new(&meter, "tensact.server.sessions", "{session}", what);
        let new = Self {
            requests: counter(&meter, "tensact.requests", "{request}", "Observations by what became of them"),
            request_duration: seconds(
                &meter,
                "tensact.request.duration",
                "From the arrival of a message to its outcome",
                &SECONDS,
            ),
            part_duration: seconds(
                &meter,
                "tensact.request.part.duration",
                "The parts of an answered request, which follow each other",
                &SECONDS,
            ),
            time_left: seconds(
                &meter,
                "tensact.request.time_left",
                "What was left of the time to answer; zero for late answers",
                &[&[0.0], &SECONDS[..]].concat(),
            ),
            stage_duration: seconds(
                &meter,
                "tensact.stage.duration",
                "One pass of a slice; of the expert, one denoising step",
                &SECONDS,
            ),
            stage_batch: meter
                .u64_histogram("tensact.stage.batch_size")
                .with_unit("{request}")
                .with_description("Requests in one pass of a slice")
                .with_boundaries(REQUESTS.to_vec())
                .build(),
            refused: counter(
                &meter,
                "tensact.server.connections.refused",
                "{connection}",
                "Connections above a limit",
            ),
            connections,
            sessions,
            observed: Observed::new(&meter),
            registry,
            provider,
        };
        // A counter that appears with its first increment hides that increment from `rate`.
        new.refused.add(0, &[]);
        for outcome in OUTCOMES {
            new.requests.add(0, &[KeyValue::new(OUTCOME, outcome)]);
        }
        new
    }

    /// Counts a request that ended, `took` after its message arrived.
    pub(crate) fn record(&self, answer: &Result<Answer, Failure>, took: Duration) {
        let outcome = answer.as_ref().map_or_else(Failure::outcome, |_| "done");
        self.ended(outcome, took);
        let Ok(answer) = answer else { return };
        let Timings { preprocess_ms, queue_ms, vision_ms, prefix_ms, denoise_ms, .. } = answer.chunk.timings;
        let parts = [
            ("read", answer.read.as_secs_f64()),
            ("preprocess", preprocess_ms / 1e3),
            ("queue", queue_ms / 1e3),
            ("vision", vision_ms / 1e3),
            ("prefix", prefix_ms / 1e3),
            ("denoise", denoise_ms / 1e3),
            ("postprocess", answer.postprocess().as_secs_f64()),
        ];
        for (part, seconds) in parts {
            self.part_duration.record(seconds, &[KeyValue::new(PART, part)]);
        }
        if let Some(deadline) = answer.deadline {
            self.time_left.record(deadline.saturating_sub(answer.took).as_secs_f64(), &[]);
        }
    }

    /// Counts a request that nobody waits for any more.
    pub(crate) fn cancelled(&self, took: Duration) {
        self.ended("cancelled", took);
    }

    fn ended(&self, outcome: &'static str, took: Duration) {
        let outcome = [KeyValue::new(OUTCOME, outcome)];
        self.requests.add(1, &outcome);
        self.request_duration.record(took.as_secs_f64(), &outcome);
    }

    /// Counts a connection above a limit.
    pub(crate) fn connection_refused(&self) {
        self.refused.add(1, &[]);
    }

    /// Counts a pass of a slice over a batch; of the expert, a denoising step.
    pub(crate) fn stage_pass(&self, stage: StageKind, took: Duration, batch: usize) {
        let stage = [KeyValue::new(STAGE, stage.to_string())];
        self.stage_duration.record(took.as_secs_f64(), &stage);
        self.stage_batch.record(batch as u64, &stage);
    }

    /// Takes what the pipeline does now, and has done since the start.
    pub(crate) fn look(&self, now: Instant, stats: Stats) {
        self.observed.look(now, stats);
    }

    /// Takes what the placement sets aside on its chips.
    pub(crate) fn chips_memory(&self, memory: Vec<ChipMemory>) {
        self.observed.chips_memory(memory);
    }

    /// Everything, in the text format of Prometheus.
    pub(crate) fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!("metrics cannot be written: {error}");
            String::new()
        })
    }

    /// Sends what is left to the collector, if there is one. Blocks until it has it, or its timeout is over.
    pub(crate) fn shut_down(&self) {
        // Why stands in the log, from the exporter.
        if self.provider.shutdown().is_err() {
            tracing::warn!("the last metrics did not reach the collector");
        }
    }
}

fn counter(meter: &Meter, name: &'static str, unit: &'static str, what: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_unit(unit).with_description(what).build()
}

fn seconds(meter: &Meter, name: &'static str, what: &'static str, bounds: &[f64]) -> Histogram<f64> {
    meter.f64_histogram(name).with_unit("s").with_description(what).with_boundaries(bounds.to_vec()).build()
}
