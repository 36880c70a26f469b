//! Observations in, action chunks out.
//!
//! [`Pipeline`] puts a checkpoint and a robot together: it prepares an observation, runs vision tower, VLM prefix and
//! action expert, and gives the actions in the robot's units.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use tensact::{Options, Pipeline, Request};
//! use tensact::runtime::checkpoint::{Checkpoint, synth};
//! use tensact::runtime::observation::{Image, Layout, Observation};
//! use tensact::topology::Variant;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A random policy; `Checkpoint::open` takes a trained one just the same.
//! let folder = tempfile::tempdir()?;
//! let sizes = synth::SynthSize::Tiny.sizes(Variant::Pi0);
//! synth::write(folder.path(), &sizes, 0, synth::SynthDtype::Bf16, &|_, _| ())?;
//!
//! let checkpoint = Arc::new(Checkpoint::open(folder.path())?);
//! let pipeline = Pipeline::host(&checkpoint, &Options::default()).await?;
//! let observation = Observation {
//!     images: [("base".to_owned(), Image::from_u8(Layout::Hwc, 48, 64, vec![128; 48 * 64 * 3])?)].into(),
//!     state: vec![0.0; 8],
//!     prompt: Some("pick up the red block".to_owned()),
//! };
//! let request = Request { deadline: Some(Duration::from_secs(60)), ..Request::default() };
//! let chunk = pipeline.infer(observation, request).await?;
//! assert_eq!(chunk.actions.shape(), [10, 8]);
//!
//! pipeline.shutdown(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod chip;
mod clock;
mod devices;
mod edge;
mod engine;
mod home;
mod memo;
mod memory;
mod parcel;
mod pipeline;
mod recorder;
mod request;
mod scheduler;
mod seat;
pub mod simulate;
mod stage;
mod start;
pub mod telemetry;
#[cfg(any(test, feature = "ttnn"))]
mod tenstorrent;
mod ticket;
mod workers;

pub use devices::DeviceError;
pub use memory::SetAside;
pub use pipeline::{Pipeline, PipelineStats, Stats};
pub use recorder::{LinkStats, SliceStats};
pub use request::{ActionChunk, Chunking, InferError, Refusal, Request, Start, Timings};
pub use scheduler::Counts;
pub use start::{Options, ProfileChoice, StartError, locate};
pub use workers::Workers;

pub use tensact_runtime as runtime;
pub use tensact_topology as topology;
