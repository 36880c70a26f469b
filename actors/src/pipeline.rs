//! A deployment for one kind of robot: observations in, action chunks out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::model::flow::{Guidance, Steps, noise};
use tensact_runtime::observation::Observation;
use tensact_runtime::policy::Sample;
use tensact_runtime::preprocess::statistics::Source;
use tensact_runtime::preprocess::{Prepared, Preprocessor, Warning};
use tensact_topology::deployment::Deployment;
use tensact_topology::{Board, ChipId, ModelSizes, Placement, RequestShape};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::engine::{Blueprint, Engine};
use crate::memory::SetAside;
use crate::recorder::{LinkStats, SliceStats};
use crate::request::{ActionChunk, Chunking, InferError, Refusal, Request, Start, Timings};
use crate::scheduler::{Answer, Counts, Limits};
use crate::start::{Loaded, Options, StartError, checkpoint_of, needs_threads, this_machine};
use crate::telemetry::Journal;
use crate::ticket::milliseconds;
use crate::workers::Workers;

/// What a pipeline has done and does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Requests by what became of them.
    pub counts: Counts,
    /// Requests that wait.
    pub waiting: usize,
    /// The pipelines of the deployment.
    pub pipelines: Vec<PipelineStats>,
    /// How long each chip has computed or transferred since the start, in milliseconds.
    pub chips: BTreeMap<ChipId, f64>,
    /// Links between chips that were used.
    pub links: Vec<LinkStats>,
}

/// One pipeline of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStats {
    /// Whether it takes requests.
    pub in_service: bool,
    /// Requests it works on.
    pub in_flight: usize,
    /// Its slices in the order in which an observation meets them.
    pub slices: Vec<SliceStats>,
}

/// A running deployment for one kind of robot.
///
/// Must be used within the tokio runtime it was started in. Dropping it stops everything at the next boundary between
/// layers or steps; see [`Pipeline::drain`] and [`Pipeline::shutdown`] for gentler ends.
pub struct Pipeline {
    engine: Engine,
    preprocessor: Arc<Preprocessor>,
    board: Arc<Board>,
    placement: Placement,
    limits: Limits,
    request: RequestShape,
    sizes: ModelSizes,
    steps: Steps,
    statistics: Source,
    deadline: Option<Duration>,
    workers: Workers,
}

impl Pipeline {
    /// Starts a deployment: loads its checkpoint (a path beside the deployment file or from here, or a Hugging Face id),
    /// checks its placement, starts its actors.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tensact::runtime::checkpoint::synth;
    /// use tensact::runtime::observation::Observation;
    /// use tensact::topology::{Deployment, Variant};
    /// use tensact::{InferError, Options, Pipeline, Refusal, Request};
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let sizes = synth::SynthSize::Tiny.sizes(Variant::Pi05);
    /// # synth::write(folder.path(), &sizes, 0, synth::SynthDtype::Bf16, &|_, _| ())?;
    /// // As `Deployment::read` takes it from a file that `tensact plan` wrote: one replica on each of four chips.
    /// let text = format!(
    ///     "board = 'quietbox-bh'\ncheckpoint = '{}'\n[[pipeline]]\ncopies = '0..4'\ndevice = 'host'",
    ///     folder.path().display(),
    /// );
    /// let pipeline = Pipeline::start(&Deployment::parse("four chips", &text)?, &Options::default()).await?;
    ///
    /// let observation = Observation { state: vec![0.0; 8], prompt: Some("wave".into()), ..Observation::default() };
    /// let request = || Request {
    ///     robot: Some("left arm".into()),
    ///     deadline: Some(Duration::from_secs(30)),
    ///     ..Request::default()
    /// };
    /// match pipeline.infer(observation, request()).await {
    ///     Ok(chunk) => println!("{:?} after {:.1} ms", chunk.actions, chunk.timings.total_ms),
    ///     Err(InferError::Refused(Refusal::QueueFull { waiting, .. })) => println!("{waiting} are ahead: ask again"),
    ///     Err(other) => println!("no actions: {other}"),
    /// }
    /// assert_eq!(pipeline.stats().await.pipelines.len(), 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Says everything that is wrong with the deployment, or what cannot be read.
    pub async fn start(deployment: &Deployment, options: &Options) -> Result<Self, StartError> {
        needs_threads()?;
        let (deployment, options) = (deployment.clone(), options.clone());
        Self::run(deployment, move |deployment| {
            Loaded::new(deployment, &checkpoint_of(deployment)?, &options)
        })
        .await
    }

    /// Starts a whole policy on this machine: its stages take turns on the cores.
    ///
    /// # Errors
    /// When profile, tokenizer or statistics cannot be used or do not fit the checkpoint.
    pub async fn host(checkpoint: &Arc<Checkpoint>, options: &Options) -> Result<Self, StartError> {
        needs_threads()?;
        let (checkpoint, options) = (Arc::clone(checkpoint), options.clone());
        let deployment = this_machine(options.dtype);
        Self::run(deployment, move |deployment| Loaded::new(deployment, &checkpoint, &options)).await
    }

    /// Starts a deployment on emulated chips, without weights, for load tests of servers and robots: every device of the
    /// file becomes an emulated one and takes the time that the cost model says. The actions depend on all that a
    /// model would get and mean nothing: in the model's units, and without chunking, they are within 1 of the noise they
    /// start from. The checkpoint is not read, and need not exist.
    ///
    /// Robot and tokenizer are those of `options`, the tokenizer that of synthetic policies unless one is named; dtype,
    /// threads and asset play no part, and there are no statistics ([`Source::Nowhere`]). Cameras are openpi's three.
    ///
    /// Any tokio runtime will do, also one of a single thread. If its clock is paused, the chips' time passes as soon as
    /// everybody waits, a millisecond at a time.
    ///
    /// ```
    /// use tensact::runtime::observation::{Image, Layout, Observation};
    /// use tensact::topology::{Deployment, ModelSizes, Variant};
    /// use tensact::{Options, Pipeline, Request};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let text = "board = 'quietbox-bh'\ncheckpoint = 'anything'\n[[pipeline]]\ncopies = '0..4'";
    /// let deployment = Deployment::parse("four chips", text)?;
    /// let sizes = ModelSizes::base(Variant::Pi05);
    /// let pipeline = Pipeline::emulated(&deployment, &sizes, &Options::default()).await?;
    /// let observation = Observation {
    ///     images: [("base".to_owned(), Image::from_u8(Layout::Hwc, 48, 64, vec![128; 48 * 64 * 3])?)].into(),
    ///     state: vec![0.0; 8],
    ///     prompt: Some("wave".into()),
    /// };
    /// let chunk = pipeline.infer(observation, Request::default()).await?;
    /// assert_eq!(chunk.actions.shape(), [50, 32]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Says everything that is wrong with the deployment; when profile or tokenizer cannot be used or do not fit the sizes.
    pub async fn emulated(
        deployment: &Deployment,
        sizes: &ModelSizes,
        options: &Options,
    ) -> Result<Self, StartError> {
        let (deployment, sizes, options) = (deployment.clone(), *sizes, options.clone());
        Self::run(deployment, move |deployment| Loaded::emulated(deployment, &sizes, &options)).await
    }

    async fn run(
        deployment: Deployment,
        load: impl FnOnce(&Deployment) -> Result<Loaded, StartError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let limits = Limits::new(deployment.batching, deployment.admission);
        let default_ms = deployment.deadlines.default_ms;
        let load = move || load(&deployment).map(|loaded| (deployment.request(&loaded.sizes), loaded));
        let loaded = tokio::task::spawn_blocking(load).await;
        let (request, loaded) = loaded.map_err(|_| StartError::Interrupted)??;
        let board = Arc::new(loaded.board);
        let engine = Engine::start(Blueprint {
            board: Arc::clone(&board),
            sizes: loaded.sizes,
            placement: loaded.placement.clone(),
            limits,
            devices: loaded.devices,
            clock: Clock::real(),
            log: None,
            faults: BTreeMap::new(),
            follows: true,
            on_threads: loaded.computes,
        });
        Ok(Self {
            engine: engine.await,
            preprocessor: Arc::new(loaded.preprocessor),
            board,
            placement: loaded.placement,
            limits,
            request,
            sizes: loaded.sizes,
            steps: loaded.steps,
            statistics: loaded.statistics,
            deadline: default_ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok()),
            workers: Workers::default(),
        })
    }

    /// Prepares observations and actions of the robot.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Where the scales of state and actions are from. [`Source::Nowhere`] deserves a warning.
    pub fn statistics(&self) -> &Source {
        &self.statistics
    }

    /// The board that it runs on.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// What runs where.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What the deployment is laid out for.
    pub fn request(&self) -> RequestShape {
        self.request
    }

    /// Memory that the placement sets aside on each chip.
    pub fn memory_set_aside(&self) -> BTreeMap<ChipId, SetAside> {
        SetAside::on_chips(&self.placement, &self.sizes, &self.request, self.limits.max_in_flight)
    }

    /// Most observations that wait.
    pub fn queue_capacity(&self) -> usize {
        self.limits.queue
    }

    /// The policy's sizes.
    pub fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    /// What prepares observations, for those who have to read them first.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Time to answer of requests that name none.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Actions for one observation, which counts as newer than those of its robot whose future was polled before. Dropping
    /// the future cancels the request: its stages let go of it at the next boundary (a vision pass, a layer of the prefix,
    /// a denoising step); a pass that others share goes on for them.
    ///
    /// # Errors
    /// When observation, noise or previous chunk cannot be used; when the pipeline refuses the request or gives it up.
    pub async fn infer(&self, observation: Observation, request: Request) -> Result<ActionChunk, InferError> {
        let (clock, arrival) = (Instant::now(), self.engine.arrive(request.parent));
        let deadline = request.deadline.or(self.deadline);
        let robot = request.robot.clone();
        let state = observation.state.clone();
        let (preprocessor, sizes, steps) = (Arc::clone(&self.preprocessor), self.sizes, self.steps);
        let prepare = move || prepare(&preprocessor, &sizes, steps, &observation, &request);
        let prepared = self.workers.run(prepare).await;
        let (sample, warnings) = prepared.ok_or(InferError::Interrupted)??;
        let preprocess = clock.elapsed();
        let left = match deadline {
            Some(deadline) if deadline <= preprocess => {
                let (deadline_ms, boundary) = (milliseconds(deadline), "the end of preprocessing");
                return Err(Refusal::Expired { deadline_ms, boundary }.into());
            }
            deadline => deadline.map(|deadline| deadline - preprocess),
        };
        let answer = self
            .engine
            .submit_as(arrival, sample, robot, left)
            .outcome()
            .await
            .map_err(|refusal| refusal.after(preprocess))?;
        if answer.actions.data().iter().any(|action| !action.is_finite()) {
            return Err(InferError::NotFinite);
        }
        let actions = self.preprocessor.robot_actions(&answer.actions, &state)?;
        Ok(ActionChunk { actions, timings: timings(&answer, preprocess, clock.elapsed()), warnings })
    }

    /// What it has done and does.
    pub async fn stats(&self) -> Stats {
        let recorder = &self.engine.recorder;
        let chips = recorder.busy().into_iter().map(|(chip, busy)| (chip, milliseconds(busy))).collect();
        let links = recorder.links();
        let Some(seen) = self.engine.look().await else {
            return Stats { counts: Counts::default(), waiting: 0, pipelines: Vec::new(), chips, links };
        };
        let pipelines = seen.pipelines.into_iter().enumerate().map(|(number, (in_service, in_flight))| {
            PipelineStats { in_service, in_flight, slices: recorder.slices(number) }
        });
        Stats { counts: seen.counts, waiting: seen.waiting, pipelines: pipelines.collect(), chips, links }
    }

    /// What its chips do for which requests, taken down from the first call on.
    pub fn journal(&self) -> &Arc<Journal> {
        self.engine.recorder.keep_journal()
    }

    /// Takes no more requests, and waits until all that were admitted are answered.
    pub async fn drain(&self) {
        self.engine.drain().await;
    }

    /// Drains for at most `grace`, refuses what is left, and stops all actors; takes no longer than twice the grace. A
    /// device that is in the middle of a computation ends on its own.
    pub async fn shutdown(&self, grace: Duration) {
        self.engine.shut_down(grace).await;
    }
}

/// What the model takes, and what the robot's operator should know.
fn prepare(
    preprocessor: &Preprocessor,
    sizes: &ModelSizes,
    steps: Steps,
    observation: &Observation,
    request: &Request,
) -> Result<(Sample, Vec<Warning>), InferError> {
    let Prepared { input, warnings, .. } = preprocessor.prepare(observation)?;
    let chunking = request.chunking.as_ref();
    let guidance =
        chunking.map(|chunking| guidance(preprocessor, chunking, &observation.state)).transpose()?;
    let noise = match &request.start {
        Start::Seed(seed) => noise(sizes, *seed),
        Start::Noise(noise) => noise.clone(),
    };
    if let Some(index) = noise.data().iter().position(|value| !value.is_finite()) {
        return Err(InferError::Noise { index, value: noise.data()[index] });
    }
    let sample = Sample { input, noise, steps: request.steps.unwrap_or(steps), guidance };
    sample.check(sizes)?;
    Ok((sample, warnings))
}

/// Guidance in the model's units.
fn guidance(preprocessor: &Preprocessor, chunking: &Chunking, state: &[f32]) -> Result<Guidance, InferError> {
    let previous = preprocessor.normalise_actions(&chunking.previous, state);
    if !(chunking.max_weight > 0.0 && chunking.max_weight.is_finite()) {
        return Err(InferError::MaxWeight(chunking.max_weight));
    }
    Ok(Guidance {
        previous: previous.map_err(InferError::Previous)?,
        delay: chunking.delay,
        execution_horizon: chunking.execution_horizon,
        schedule: chunking.schedule,
        max_weight: chunking.max_weight,
    })
}

fn timings(answer: &Answer, preprocess: Duration, total: Duration) -> Timings {
    let marks = answer.marks;
    let between = |from: Duration, to: Duration| milliseconds(to.saturating_sub(from));
    Timings {
        preprocess_ms: milliseconds(preprocess),
        queue_ms: between(answer.admitted, marks.dispatched),
        vision_ms: between(marks.dispatched, marks.seen),
        prefix_ms: between(marks.seen, marks.cached),
        denoise_ms: between(marks.cached, answer.done),
        total_ms: milliseconds(total),
    }
}
