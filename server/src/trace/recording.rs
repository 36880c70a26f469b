//! A trace file that is written while others work.
//!
//! Invariant *bounded*: what waits to be written is at most a channel full.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tensact::telemetry::{Activity, Entry, Listener, RequestTrace};

use super::event::{Asked, LeftOut, Run, Written};
use super::write::TraceWriter;

/// Entries that may wait: what a board of 32 chips does in a few seconds.
const WAITING: usize = 1 << 16;
/// How much a crash may cost.
const FLUSH: Duration = Duration::from_secs(1);

/// What is done when entries come faster than they can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Whoever works waits, and nothing is missing.
    Wait,
    /// Nobody waits; what does not fit is counted, and the file and the log say so.
    LeaveOut,
}

/// A trace file under way.
pub struct Recording {
    path: PathBuf,
    inbox: Inbox,
    writer: JoinHandle<io::Result<Written>>,
}

/// Where entries go.
#[derive(Clone)]
struct Inbox {
    entries: SyncSender<Line>,
    full: Full,
    left_out: Arc<Missing>,
}

/// What did not fit, since the file last said so.
#[derive(Default)]
struct Missing {
    activities: AtomicU64,
    requests: AtomicU64,
}

enum Line {
    Activity(Arc<Activity>),
    Request(Arc<RequestTrace>),
    Asked(Box<Asked>),
    End,
}

/// What robots tell of their observations.
#[derive(Clone)]
pub struct Clients(Inbox);

impl Recording {
    /// Begins to write to a file, which is named `path` where something is wrong with it.
    ///
    /// # Errors
    /// When the file cannot be written, or no thread can be had.
    pub fn start(path: &Path, file: File, run: &Run, full: Full) -> io::Result<Self> {
        let (entries, outbox) = sync_channel(WAITING);
        let left_out = Arc::new(Missing::default());
        let missing = Arc::clone(&left_out);
        let mut trace = TraceWriter::new(BufWriter::with_capacity(1 << 18, file), run)?;
        trace.flush()?;
        let name = path.display().to_string();
        let write = move || {
            let written = write(trace, &outbox, &missing, &name);
            if let Err(error) = &written {
                tracing::error!("the trace file {name} ends here, it cannot be written: {error}");
            }
            written
        };
        let writer = std::thread::Builder::new().name("trace".into()).spawn(write)?;
        Ok(Self { path: path.into(), inbox: Inbox { entries, full, left_out }, writer })
    }

    /// What a journal tells its entries to.
    pub fn listener(&self) -> Listener {
        let inbox = self.inbox.clone();
        Box::new(move |entry| match entry {
            Entry::Activity(activity) => inbox.put(Line::Activity(Arc::clone(activity))),
            Entry::Request(request) => inbox.put(Line::Request(Arc::clone(request))),
        })
    }

    /// What robots tell their observations to.
    pub fn clients(&self) -> Clients {
        Clients(self.inbox.clone())
    }

    /// Ends the file behind what was told before.
    ///
    /// # Errors
    /// When it could not be written to its end; the message names it.
    pub fn finish(self) -> Result<Written, String> {
        let failed =
            |why: &dyn std::fmt::Display| format!("cannot write the trace to {}: {why}", self.path.display());
        // It fails where the writer has failed, which is known in a moment.
        self.inbox.entries.send(Line::End).ok();
        match self.writer.join() {
            Ok(written) => written.map_err(|error| failed(&error)),
            Err(_) => Err(failed(&"its thread has panicked")),
        }
    }
}

impl Clients {
    /// Tells of an observation.
    pub fn asked(&self, asked: Asked) {
        self.0.put(Line::Asked(Box::new(asked)));
    }
}

impl Inbox {
    /// Nobody is told when the writer has failed: [`Recording::finish`] tells it.
    fn put(&self, line: Line) {
        match self.full {
            Full::Wait => drop(self.entries.send(line)),
            Full::LeaveOut => {
                if let Err(TrySendError::Full(line)) = self.entries.try_send(line) {
                    let Missing { activities, requests } = &*self.left_out;
                    let count = if matches!(line, Line::Activity(_)) { activities } else { requests };
                    count.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

impl Missing {
    fn take(&self) -> Option<LeftOut> {
        let [activities, requests] = [&self.activities, &self.requests].map(|count| count.swap(0, Relaxed));
        (activities + requests > 0).then_some(LeftOut { activities, requests })
    }
}

fn write(
    mut trace: TraceWriter<BufWriter<File>>,
    outbox: &Receiver<Line>,
    missing: &Missing,
    name: &str,
) -> io::Result<Written> {
    let (mut flushed, mut at) = (Instant::now(), Duration::ZERO);
    let mut told = false;
    loop {
        let line = outbox.recv_timeout(FLUSH);
        if let Some(left_out) = missing.take() {
            trace.left_out(at, left_out)?;
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    file = name,
                    "what chips do comes faster than it can be written: some is left out"
                );
            }
        }
        match line {
            Ok(Line::Activity(activity)) => {
                at = activity.ended;
                trace.activity(&activity)?;
            }
            Ok(Line::Request(request)) => trace.request(&request)?,
            Ok(Line::Asked(asked)) => trace.asked(&asked)?,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => break,
        }
        if flushed.elapsed() >= FLUSH {
            trace.flush()?;
            flushed = Instant::now();
        }
    }
    let written = trace.finish()?;
    let LeftOut { activities, requests } = written.left_out;
    if activities + requests > 0 {
        tracing::warn!(file = name, activities, requests, "left out of the trace: the disk was too slow");
    }
    Ok(written)
}
