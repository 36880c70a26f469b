//! `--trace-out`, of all commands that have it.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use miette::miette;
use tensact_server::trace::{Full, Recording, Run};

/// Where to write a trace.
#[derive(Args)]
pub(crate) struct TraceOut {
    /// Write what chips did and what became of requests, for `tensact trace` and ui.perfetto.dev.
    #[arg(long, value_name = "FILE", value_parser = json_file)]
    trace_out: Option<PathBuf>,
}

/// Viewers go by the name.
fn json_file(text: &str) -> Result<PathBuf, String> {
    match Path::new(text).extension() {
        Some(extension) if extension == "json" => Ok(text.into()),
        _ => Err("expected a name that ends in .json".into()),
    }
}

/// A trace file that is asked for: made before anything runs, written once it is known what runs.
pub(crate) struct Recorded {
    path: PathBuf,
    file: File,
}

impl TraceOut {
    /// Makes the file, if one is wanted.
    pub(crate) fn create(&self) -> miette::Result<Option<Recorded>> {
        let create = |path: &PathBuf| match File::create(path) {
            Ok(file) => Ok(Recorded { path: path.clone(), file }),
            Err(error) => Err(miette!("cannot write the trace to {}: {error}", path.display())),
        };
        self.trace_out.as_ref().map(create).transpose()
    }
}

impl Recorded {
    /// Begins to write.
    pub(crate) fn start(self, run: &Run, full: Full) -> miette::Result<Recording> {
        let Self { path, file } = self;
        Recording::start(&path, file, run, full)
            .map_err(|error| miette!("cannot write the trace to {}: {error}", path.display()))
    }
}

/// Ends a trace file that may have been asked for.
pub(crate) fn finish(recording: Option<Recording>) -> miette::Result<()> {
    let written = recording.map(Recording::finish).transpose();
    written.map(drop).map_err(|message| miette!("{message}"))
}
