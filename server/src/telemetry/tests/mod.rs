//! What is counted, and how it is written down and sent.

mod environment;
mod export;
mod text;

use std::time::Duration;

use tensact::runtime::Tensor;
use tensact::telemetry::{TraceId, Transport};
use tensact::topology::{ChipId, StageKind};
use tensact::{ActionChunk, InferError, LinkStats, PipelineStats, Refusal, SliceStats, Stats, Timings};
use tokio::time::Instant;

use super::metrics::Metrics;
use super::observed::{ChipMemory, MemoryKind};
use crate::failure::Failure;
use crate::openpi::Answer;

const MS: Duration = Duration::from_millis(1);

/// An answer after 20 ms, of which each part took one more than the one before.
fn answer(deadline: Option<Duration>) -> Answer {
    let timings = Timings {
        preprocess_ms: 2.0,
        queue_ms: 3.0,
        vision_ms: 4.0,
        prefix_ms: 5.0,
        denoise_ms: 1.0,
        total_ms: 18.0,
    };
    let chunk = ActionChunk { actions: Tensor::zeros([1, 1]), timings, warnings: Vec::new() };
    let trace = TraceId::new(1).unwrap();
    Answer { chunk, request_id: None, trace, took: 20 * MS, read: MS, deadline }
}

fn refused() -> Failure {
    Failure::Infer(InferError::Refused(Refusal::QueueFull { waiting: 1, capacity: 1 }))
}

/// Two pipelines: one that works with two slices of the expert, and one that was given up.
fn stats() -> Stats {
    let slice = |stage, chip, restarts| SliceStats {
        stage,
        layers: "0..1".parse().unwrap(),
        chips: vec![ChipId(chip)],
        passes: 1,
        requests: 1,
        busy_ms: 1.0,
        running: 0,
        restarts,
    };
    let working = PipelineStats {
        in_service: true,
        in_flight: 4,
        slices: vec![slice(StageKind::Expert, 0, 2), slice(StageKind::Expert, 1, 1)],
    };
    let retired =
        PipelineStats { in_service: false, in_flight: 0, slices: vec![slice(StageKind::Vision, 2, 5)] };
    let link =
        |from, to, transport, bytes| LinkStats { from: ChipId(from), to: ChipId(to), transport, bytes };
    Stats {
        counts: Default::default(),
        waiting: 3,
        pipelines: vec![working, retired],
        chips: [(ChipId(0), 3000.0)].into(),
        links: vec![
            link(0, 4, Transport::Socket, 1024),
            link(4, 0, Transport::Host, 8),
            link(4, 4, Transport::Local, 1),
        ],
    }
}

/// Everything that there is to tell, once.
fn fill(metrics: &Metrics) {
    metrics.record(&Ok(answer(Some(100 * MS))), 20 * MS);
    metrics.record(&Ok(answer(Some(10 * MS))), 20 * MS);
    metrics.record(&Ok(answer(None)), 20 * MS);
    metrics.record(&Err(refused()), MS);
    metrics.cancelled(7 * MS);
    metrics.connections.inc();
    metrics.connections.inc();
    metrics.connections.dec();
    metrics.connection_refused();
    metrics.sessions.inc();
    metrics.stage_pass(StageKind::Vision, 3 * MS, 1);
    metrics.stage_pass(StageKind::Expert, 2 * MS, 5);
    let start = Instant::now();
    metrics.look(start, Stats { chips: [(ChipId(0), 0.0)].into(), ..stats() });
    metrics.look(start + 4000 * MS, stats());
    let memory = |kind, usage, limit| ChipMemory { chip: ChipId(0), kind, usage, limit };
    metrics.chips_memory(vec![memory(MemoryKind::Dram, 5, 10), memory(MemoryKind::L1, 1, 2)]);
}
