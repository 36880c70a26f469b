//! What all connections share: the policy, who may ask, and the way from a message to an answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value as Json, json};
use tensact::runtime::preprocess::statistics::Source;
use tensact::telemetry::Entry;
use tensact::{Chunking, InferError, Pipeline, Refusal, Request};
use tokio::sync::SetOnce;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::asking::Asking;
use crate::auth::ApiKeys;
use crate::chunking::{ChunkingError, Memory};
use crate::config::Config;
use crate::dashboard::Hub;
use crate::failure::Failure;
use crate::openpi::{Answer, Asked, Reader, Rtc};
use crate::telemetry::metrics::{ChipMemory, MemoryKind, Metrics};
use crate::telemetry::otlp::Otlp;
use crate::telemetry::passes::Passes;
use crate::telemetry::traces::{TraceContext, Traces};
use crate::wire::{Value, WireError, read_json, read_msgpack, write_msgpack};

/// Unknown keys that are named in the log before it falls silent about them.
const UNKNOWN_KEYS: usize = 256;

/// Time between two looks at the pipeline, for metrics.
const LOOK: Duration = Duration::from_secs(1);

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Msgpack,
    Json,
}

impl Format {
    pub(crate) fn read(self, message: &[u8]) -> Result<Value<'_>, WireError> {
        match self {
            Self::Msgpack => read_msgpack(message),
            Self::Json => read_json(message),
        }
    }
}

/// A loaded policy.
pub(crate) struct Policy {
    pub(crate) pipeline: Arc<Pipeline>,
    /// What `/v1/metadata` tells.
    pub(crate) description: Json,
    /// The first frame of a connection.
    pub(crate) greeting: Bytes,
}

/// Shared by all connections.
pub(crate) struct Serving {
    pub(crate) config: Config,
    pub(crate) keys: ApiKeys,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traces: Traces,
    /// Sends what happens to pages that show it.
    pub(crate) hub: Hub,
    /// Names this run of the server.
    pub(crate) run: String,
    /// Nothing new is begun once it is cancelled.
    pub(crate) stop: CancellationToken,
    /// Connections end at once when it is cancelled.
    pub(crate) abandon: CancellationToken,
    /// Connections and sessions.
    pub(crate) tasks: TaskTracker,
    policy: SetOnce<Policy>,
    unknown: Mutex<BTreeSet<String>>,
}

/// Who asks; somebody who is not known, by default.
#[derive(Default)]
pub(crate) struct Caller {
    /// The robot's name unless a message has another.
    pub(crate) name: Option<Arc<str>>,
    /// What is remembered of it, if it stays connected.
    pub(crate) memory: Option<Mutex<Memory>>,
    /// One message is read at a time, so that they reach the pipeline in their order.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

impl Serving {
    pub(crate) fn new(config: Config, keys: ApiKeys, otlp: Otlp) -> Arc<Self> {
        let Otlp { resource, spans, sampling, metrics } = otlp;
        let slow = Duration::try_from_secs_f64(config.telemetry.slow_ms / 1e3).ok();
        let traces = match spans {
            Some(exporter) => Traces::new(exporter, &resource, sampling.slow(slow)),
            None => Traces::default(),
        };
        Arc::new(Self {
            config,
            keys,
            metrics: Arc::new(Metrics::new(resource, metrics)),
            traces,
            hub: Hub::default(),
            run: TraceContext::new(None, None).trace.label(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            tasks: TaskTracker::new(),
            policy: SetOnce::new(),
            unknown: Mutex::default(),
        })
    }

    /// Lets observations in. Only the first policy counts.
    pub(crate) fn load(&self, pipeline: Pipeline) {
        let mut description = self.describe(&pipeline);
        let metadata = serde_json::to_value(&self.config.server.metadata).unwrap_or_default();
        let mut greeting = json!({ "tensact": description });
        if let (Some(greeting), Json::Object(metadata)) = (greeting.as_object_mut(), &metadata) {
            greeting.extend(metadata.clone());
        }
        description["metadata"] = metadata;
        let greeting = write_msgpack(&greeting.into()).into();
        let (metrics, mut passes) = (Arc::clone(&self.metrics), Passes::default());
        pipeline.journal().listen(Box::new(move |entry| {
            if let Entry::Activity(activity) = entry {
                passes.take(activity, &metrics);
            }
        }));
        self.metrics.chips_memory(memory(&pipeline));
        // The server loads one policy.
        let _ = self.policy.set(Policy { pipeline: Arc::new(pipeline), description, greeting });
    }

    fn describe(&self, pipeline: &Pipeline) -> Json {
        let (preprocessor, sizes) = (pipeline.preprocessor(), pipeline.sizes());
        let cameras: Vec<&str> = preprocessor.cameras().map(|(key, _)| key).collect();
        let robot = &self.config.robot;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "variant": sizes.variant.to_string(),
            "board": pipeline.board().name,
            "profile": preprocessor.profile().name,
            "cameras": cameras,
            "state_dims": preprocessor.state_bounds().1,
            "action_dims": preprocessor.action_dims(),
            "horizon": sizes.horizon,
            "num_steps": sizes.steps,
            "prompt_tokens": sizes.prompt_tokens,
            "noise": [sizes.horizon, sizes.action_dim],
            "default_prompt": preprocessor.profile().prompt.default,
            "statistics": statistics(pipeline.statistics()),
            "rtc": robot.rtc.name(),
            "control_hz": robot.control_hz,
        })
    }

    /// The policy, if it is loaded.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.policy.get()
    }

    /// The policy, as soon as it is loaded.
    pub(crate) async fn loaded(&self) -> &Policy {
        self.policy.wait().await
    }

    /// Brings what metrics know of the pipeline up to date.
    pub(crate) async fn look(&self) {
        let Some(policy) = self.policy() else { return };
        self.metrics.look(Instant::now(), policy.pipeline.stats().await);
    }

    /// Looks every now and then, for collectors and for what metrics say about the last seconds, until the server stops.
    pub(crate) async fn keep_looking(&self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(looks.tick()).await.is_some() {
            self.look().await;
        }
    }

    /// Why no observation can be answered now; nothing if they can.
    pub(crate) async fn unready(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("shutting down".into());
        }
        let Some(policy) = self.policy() else { return Some("loading weights".into()) };
        let pipelines = policy.pipeline.stats().await.pipelines;
        match pipelines.iter().any(|pipeline| pipeline.in_service) {
            true => None,
            false => Some(format!("none of {} pipelines is in service", pipelines.len())),
        }
    }

    /// Actions for a message.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        message: Bytes,
        format: Format,
        caller: &Caller,
        name: &'static str,
        context: &mut TraceContext,
    ) -> Result<Answer, Failure> {
        let mut asking = Asking {
            serving: self,
            name,
            context,
            arrived: Instant::now(),
            read: Duration::ZERO,
            robot: caller.name.clone(),
            answered: false,
        };
        let answer = self.try_answer(&mut asking, message, format, caller).await;
        asking.answered(&answer);
        if let Err(failure) = &answer {
            tracing::debug!(robot = caller.name.as_deref(), outcome = failure.outcome(), "{failure}");
        }
        answer
    }

    async fn try_answer(
        self: &Arc<Self>,
        asking: &mut Asking<'_>,
        message: Bytes,
        format: Format,
        caller: &Caller,
    ) -> Result<Answer, Failure> {
        let arrived = asking.arrived;
        if self.stop.is_cancelled() {
            return Err(InferError::from(Refusal::Closed).into());
        }
        let policy = self.policy().ok_or(Failure::Loading)?;
        // Messages of a connection are answered by one task: who had the turn reaches the pipeline before it rests.
        let turn = caller.turn.lock().await;
        let asked = self.read(&policy.pipeline, message, format).await;
        asking.read = arrived.elapsed();
        let mut asked = asked?;
        drop(turn);
        if let Some(parent) = asked.traceparent.take() {
            asking.context.follow(&parent);
        }
        if asked.robot.is_some() {
            asking.robot.clone_from(&asked.robot);
        }
        self.log_unknown(&asked.unknown);
        let Asked { observation, start, steps, deadline, robot, rtc, request_id, .. } = asked;
        let chunking = rtc.map(|rtc| self.chunking(rtc, caller)).transpose()?.flatten();
        let reading = arrived.elapsed();
        let deadline = deadline.or(policy.pipeline.deadline());
        let left = deadline.map(|deadline| deadline.saturating_sub(reading));
        let robot = robot.or_else(|| caller.name.clone());
        let parent = asking.context.asks();
        let request = Request { start, steps, chunking, deadline: left, robot, parent: Some(parent) };
        let chunk = policy.pipeline.infer(observation, request).await;
        let chunk = chunk.map_err(|error| Failure::of(error, reading))?;
        let took = arrived.elapsed();
        if let Some(memory) = &caller.memory {
            locked(memory).remember(&chunk, took);
        }
        Ok(Answer { chunk, request_id, trace: parent.trace, took, read: asking.read, deadline })
    }

    /// Reads a message off the async threads.
    async fn read(&self, pipeline: &Arc<Pipeline>, message: Bytes, format: Format) -> Result<Asked, Failure> {
        let (reads, image_pixels) = (Arc::clone(pipeline), self.config.server.limits.image_pixels);
        let read = move || {
            let reader = Reader { preprocessor: reads.preprocessor(), sizes: reads.sizes(), image_pixels };
            Ok(reader.read(format.read(&message)?)?)
        };
        pipeline.workers().run(read).await.ok_or(Failure::Interrupted)?
    }

    fn chunking(&self, rtc: Rtc, caller: &Caller) -> Result<Option<Chunking>, ChunkingError> {
        let robot = &self.config.robot;
        match &caller.memory {
            Some(memory) => locked(memory).chunking(rtc, robot),
            None if rtc.is_remembered() => Err(ChunkingError::NoConnection),
            None => Memory::default().chunking(rtc, robot),
        }
    }

    /// Names every unknown key once in the log.
    fn log_unknown(&self, keys: &[String]) {
        for key in keys {
            let mut unknown = locked(&self.unknown);
            if unknown.len() < UNKNOWN_KEYS && unknown.insert(key.clone()) {
                tracing::warn!(key, "observations hold a key that the robot's profile does not read");
            }
        }
    }
}

/// What the placement sets aside on its chips. Weights, caches and activations lie in DRAM, but for weights that are to stay in L1.
fn memory(pipeline: &Pipeline) -> Vec<ChipMemory> {
    let (set_aside, mut memory) = (pipeline.memory_set_aside(), Vec::new());
    for chip in pipeline.board().chips() {
        let Some(aside) = set_aside.get(&chip.id) else { continue };
        let of = |kind, usage, limit| ChipMemory { chip: chip.id, kind, usage, limit };
        memory.push(of(MemoryKind::Dram, aside.dram_bytes, chip.spec.dram_bytes));
        memory.push(of(MemoryKind::L1, aside.l1_bytes, chip.spec.l1_bytes()));
    }
    memory
}

/// Where scales come from; not the path, which is nobody's business.
fn statistics(source: &Source) -> &'static str {
    match source {
        Source::OpenPi(_) => "openpi",
        Source::LeRobot(_) => "lerobot",
        Source::Buffers => "buffers",
        Source::Nowhere => "none",
    }
}

/// A lock whose content is whole whoever panicked with it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
