//! The file that gets a line for every event.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use miette::miette;

/// A file that the simulation writes to while it runs.
pub(super) struct EventFile {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    writer: BufWriter<File>,
    /// The first line that could not be written; nothing is written after it.
    failure: Option<std::io::Error>,
}

impl EventFile {
    pub(super) fn create(path: &Path) -> miette::Result<Self> {
        let file = File::create(path).map_err(|error| failed(path, &error))?;
        let state = State { writer: BufWriter::new(file), failure: None };
        Ok(Self { path: path.into(), state: Arc::new(Mutex::new(state)) })
    }

    /// What takes the lines.
    pub(super) fn sink(&self) -> Box<dyn FnMut(String) + Send> {
        let state = Arc::clone(&self.state);
        Box::new(move |line| {
            let State { writer, failure } = &mut *lock(&state);
            if failure.is_none() {
                *failure = writeln!(writer, "{line}").err();
            }
        })
    }

    /// Says whether all lines are in the file.
    pub(super) fn finish(self) -> miette::Result<()> {
        let State { writer, failure } = &mut *lock(&self.state);
        let failure = failure.take().or_else(|| writer.flush().err());
        failure.map_or(Ok(()), |error| Err(failed(&self.path, &error)))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(path: &Path, error: &std::io::Error) -> miette::Report {
    miette!("cannot write the events to {}: {error}", path.display())
}
