//! What the pipeline was seen to do, which instruments are asked for when somebody reads them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use tensact::topology::{ChipId, StageKind};
use tensact::{LinkStats, Stats};
use tokio::time::Instant;

use super::attribute::{CHIP, LINK, MEMORY, PIPELINE, STAGE, TRANSPORT};
use super::utilization::Utilization;
use crate::serving::locked;

/// How many there are of something now.
#[derive(Clone)]
pub(crate) struct Level(Arc<AtomicU64>);

impl Level {
    pub(super) fn new(meter: &Meter, name: &'static str, unit: &'static str, what: &'static str) -> Self {
        let level = Self(Arc::default());
        let seen = level.clone();
        meter
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(what)
            .with_callback(move |gauge| gauge.observe(seen.get(), &[]))
            .build();
        level
    }

    /// One more.
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; there was one.
    pub(crate) fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A memory of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MemoryKind {
    Dram,
    L1,
}

/// What the placement sets aside in a memory of a chip, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChipMemory {
    pub(crate) chip: ChipId,
    pub(crate) kind: MemoryKind,
    pub(crate) usage: u64,
    pub(crate) limit: u64,
}

impl ChipMemory {
    fn attributes(&self) -> [KeyValue; 2] {
        let kind = match self.kind {
            MemoryKind::Dram => "dram",
            MemoryKind::L1 => "l1",
        };
        [chip(self.chip), KeyValue::new(MEMORY, kind)]
    }
}

#[derive(Default)]
struct Pipeline {
    in_service: bool,
    in_flight: usize,
    restarts: BTreeMap<StageKind, u64>,
}

/// The last that was seen.
#[derive(Default)]
struct Seen {
    waiting: usize,
    pipelines: Vec<Pipeline>,
    busy: BTreeMap<ChipId, Duration>,
    utilization: Utilization,
    memory: Vec<ChipMemory>,
    links: Vec<LinkStats>,
}

/// Instruments ask it on threads of their own, so it never waits for the pipeline.
#[derive(Default)]
pub(super) struct Observed(Mutex<Seen>);

impl Observed {
    pub(super) fn new(meter: &Meter) -> Arc<Self> {
        let new = Arc::new(Self::default());
        new.observe_pipelines(meter);
        new.observe_chips(meter);
        new.observe_links(meter);
        new
    }

    pub(super) fn look(&self, now: Instant, stats: Stats) {
        let seconds = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
        let busy = stats.chips.into_iter().map(|(chip, ms)| (chip, seconds(ms))).collect();
        let mut seen = locked(&self.0);
        seen.utilization.sample(now, &busy);
        seen.busy = busy;
        seen.links = stats.links;
        seen.waiting = stats.waiting;
        let pipelines = stats.pipelines.into_iter().map(|stats| {
            let mut restarts = BTreeMap::new();
            for slice in &stats.slices {
                *restarts.entry(slice.stage).or_default() += slice.restarts;
            }
            Pipeline { in_service: stats.in_service, in_flight: stats.in_flight, restarts }
        });
        seen.pipelines = pipelines.collect();
    }

    pub(super) fn chips_memory(&self, memory: Vec<ChipMemory>) {
        locked(&self.0).memory = memory;
    }

    fn observe_pipelines(self: &Arc<Self>, meter: &Meter) {
        let all = Arc::clone(self);
        meter
            .u64_observable_gauge("tensact.queue.length")
            .with_unit("{request}")
            .with_description("Observations that wait for a pipeline")
            .with_callback(move |gauge| gauge.observe(locked(&all.0).waiting as u64, &[]))
            .build();
        let all = Arc::clone(self);
        meter
            .u64_observable_gauge("tensact.pipeline.in_flight")
            .with_unit("{request}")
            .with_description("Requests that a pipeline works on")
            .with_callback(move |gauge| {
                for (number, pipeline) in locked(&all.0).pipelines.iter().enumerate() {
                    gauge.observe(pipeline.in_flight as u64, &[self::pipeline(number)]);
                }
            })
            .build();
        let all = Arc::clone(self);
        meter
            .u64_observable_gauge("tensact.pipeline.in_service")
            .with_description("1 for a pipeline that takes requests, 0 for one that was given up")
            .with_callback(move |gauge| {
                for (number, pipeline) in locked(&all.0).pipelines.iter().enumerate() {
                    gauge.observe(pipeline.in_service.into(), &[self::pipeline(number)]);
                }
            })
            .build();
        let all = Arc::clone(self);
        meter
            .u64_observable_counter("tensact.stage.restarts")
            .with_unit("{restart}")
            .with_description("Slices that failed and were started again")
            .with_callback(move |counter| {
                for (number, pipeline) in locked(&all.0).pipelines.iter().enumerate() {
                    for (stage, restarts) in &pipeline.restarts {
                        let stage = KeyValue::new(STAGE, stage.to_string());
                        counter.observe(*restarts, &[stage, self::pipeline(number)]);
                    }
                }
            })
            .build();
    }

    fn observe_chips(self: &Arc<Self>, meter: &Meter) {
        let all = Arc::clone(self);
        meter
            .f64_observable_counter("tensact.chip.busy")
            .with_unit("s")
            .with_description("How long a chip was taken, computing or transferring")
            .with_callback(move |counter| {
                for (number, busy) in &locked(&all.0).busy {
                    counter.observe(busy.as_secs_f64(), &[chip(*number)]);
                }
            })
            .build();
        let all = Arc::clone(self);
        meter
            .f64_observable_gauge("tensact.chip.utilization")
            .with_unit("1")
            .with_description("Share of the last 10 s in which a chip was busy")
            .with_callback(move |gauge| {
                for (number, share) in locked(&all.0).utilization.shares() {
                    gauge.observe(*share, &[chip(*number)]);
                }
            })
            .build();
        let all = Arc::clone(self);
        meter
            .u64_observable_gauge("tensact.chip.memory.usage")
            .with_unit("By")
            .with_description("What the placement sets aside in the memory of a chip")
            .with_callback(move |gauge| {
                for memory in &locked(&all.0).memory {
                    gauge.observe(memory.usage, &memory.attributes());
                }
            })
            .build();
        let all = Arc::clone(self);
        meter
            .u64_observable_gauge("tensact.chip.memory.limit")
            .with_unit("By")
            .with_description("What the memory of a chip holds")
            .with_callback(move |gauge| {
                for memory in &locked(&all.0).memory {
                    gauge.observe(memory.limit, &memory.attributes());
                }
            })
            .build();
    }

    fn observe_links(self: &Arc<Self>, meter: &Meter) {
        let all = Arc::clone(self);
        meter
            .u64_observable_counter("tensact.link.io")
            .with_unit("By")
            .with_description("Bytes that went from one chip to another")
            .with_callback(move |counter| {
                for LinkStats { from, to, transport, bytes } in &locked(&all.0).links {
                    let link = KeyValue::new(LINK, format!("{from}-{to}"));
                    counter.observe(*bytes, &[link, KeyValue::new(TRANSPORT, transport.to_string())]);
                }
            })
            .build();
    }
}

fn chip(number: ChipId) -> KeyValue {
    KeyValue::new(CHIP, number.to_string())
}

fn pipeline(number: usize) -> KeyValue {
    KeyValue::new(PIPELINE, number.to_string())
}
