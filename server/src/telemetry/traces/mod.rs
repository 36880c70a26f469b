//! Which requests are traced, and how their spans leave.
//!
//! A request is sampled by OpenTelemetry's own rules, and always when it was slow, failed or late: that is known at its end, so
//! what it takes to tell is kept until then. Spans are made and sent by threads of their own, from queues that have a bound; when a
//! collector cannot keep up, spans are left out, and no request waits.

mod context;
mod sampling;
mod spans;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanProcessor as _};
use tensact::telemetry::Journal;

use super::attribute;
use crate::serving::locked;
pub(crate) use context::TraceContext;
pub(crate) use sampling::Sampling;
use spans::{InPipeline, spans};

/// Requests whose spans wait to be made.
const REQUESTS: usize = 4096;

/// Spans that wait to be sent, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise: those of some hundred requests.
const SPANS: usize = 1 << 16;

/// How long a request that was given up is put aside until its pipeline knows.
const ASIDE: Duration = Duration::from_millis(100);

/// What the server knows of a request that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) context: TraceContext,
    /// `POST /v1/actions`, or `observation`.
    pub(crate) name: &'static str,
    pub(crate) robot: Option<Arc<str>>,
    pub(crate) outcome: &'static str,
    /// What went wrong.
    pub(crate) problem: Option<String>,
    pub(crate) arrived: SystemTime,
    /// When its message was read.
    pub(crate) read: SystemTime,
    pub(crate) answered: SystemTime,
    /// Whether that was after its deadline.
    pub(crate) late: bool,
}

impl Ended {
    fn took(&self) -> Duration {
        self.answered.duration_since(self.arrived).unwrap_or_default()
    }
}

/// A request whose spans are to be made.
struct Job {
    ended: Ended,
    /// Knows what its pipeline did for it; of one that was given up, a moment later.
    journal: Option<Arc<Journal>>,
    /// How often it was put aside for that.
    asides: u8,
}

/// Sends the spans of requests, or nothing.
#[derive(Default)]
pub(crate) struct Traces {
    sampling: Sampling,
    sender: Mutex<Option<Sender>>,
    dropped: AtomicU64,
}

struct Sender {
    jobs: SyncSender<Job>,
    thread: JoinHandle<BatchSpanProcessor>,
}

impl Traces {
    /// Sends spans where the exporter does, which needs the tokio runtime it was made in.
    pub(crate) fn new(exporter: SpanExporter, resource: &Resource, sampling: Sampling) -> Self {
        let mut config = BatchConfigBuilder::default();
        if std::env::var_os("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
            config = config.with_max_queue_size(SPANS);
        }
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        processor.set_resource(resource);
        let (jobs, received) = sync_channel(REQUESTS);
        let thread =
            std::thread::Builder::new().name("spans".into()).spawn(move || make(&received, processor));
        let sender = match thread {
            Ok(thread) => Some(Sender { jobs, thread }),
            Err(error) => {
                tracing::error!("no thread to make spans on, so none are sent: {error}");
                None
            }
        };
        Self { sampling, sender: Mutex::new(sender), dropped: AtomicU64::new(0) }
    }

    /// Whether anything is sent.
    pub(crate) fn is_on(&self) -> bool {
        locked(&self.sender).is_some()
    }

    /// Sends a request's spans, if it is one that is wanted; never waits.
    pub(crate) fn ended(&self, ended: Ended, journal: Option<&Arc<Journal>>) {
        let sender = locked(&self.sender);
        let Some(Sender { jobs, .. }) = &*sender else { return };
        if !self.sampling.wants(&ended) {
            return;
        }
        if let Err(TrySendError::Full(_)) = jobs.try_send(Job { ended, journal: journal.cloned(), asides: 0 })
            && self.dropped.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!("more requests end than spans can be made for: some traces are left out");
        }
    }

    /// Sends what is left, for at most so long.
    pub(crate) fn shut_down(&self, grace: Duration) {
        let Some(Sender { jobs, thread }) = locked(&self.sender).take() else { return };
        drop(jobs);
        match self.dropped.load(Ordering::Relaxed) {
            0 => {}
            dropped => tracing::warn!(dropped, "traces were left out"),
        }
        if let Ok(processor) = thread.join()
            && let Err(error) = processor.shutdown_with_timeout(grace)
        {
            tracing::warn!("spans were not all sent: {error}");
        }
    }
}

/// The next request to make spans of: one that was put aside for long enough, or one that has ended.
fn next(jobs: &Receiver<Job>, aside: &mut VecDeque<(Instant, Job)>) -> Option<Job> {
    let now = Instant::now();
    let ended = match aside.front() {
        None => return jobs.recv().ok(),
        Some((until, _)) if *until <= now => None,
        Some((until, _)) => jobs.recv_timeout(*until - now).ok(),
    };
    ended.or_else(|| aside.pop_front().map(|(_, job)| Job { asides: job.asides + 1, ..job }))
}

/// Makes spans until there is nobody who could ask for more.
fn make(jobs: &Receiver<Job>, processor: BatchSpanProcessor) -> BatchSpanProcessor {
    let mut aside = VecDeque::new();
    while let Some(job) = next(jobs, &mut aside) {
        let Job { ended, journal, asides } = &job;
        let known = journal.as_ref().and_then(|journal| {
            let request = journal.asked_from(ended.context.own())?;
            let path = journal.path(&request);
            Some(InPipeline { request, path, started: journal.started() })
        });
        if known.is_none() && ended.outcome == "cancelled" && *asides == 0 {
            aside.push_back((Instant::now() + ASIDE, job));
            continue;
        }
        spans(ended, known.as_ref()).into_iter().for_each(|span| processor.on_end(span));
    }
    processor
}
