//! Observations in, action chunks out.
//!
//! [`Pipeline`] puts a checkpoint and a robot together: it prepares an observation, runs vision tower, VLM prefix and
//! action expert, and gives the actions in the robot's units.
//!
//! ```
//! use tensact::{Options, Pipeline, Request};
//! use tensact::runtime::checkpoint::{Checkpoint, synth};
//! use tensact::runtime::observation::{Image, Layout, Observation};
//! use tensact::topology::Variant;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A random policy; `Checkpoint::open` takes a trained one just the same.
//! let folder = tempfile::tempdir()?;
//! let sizes = synth::SynthSize::Tiny.sizes(Variant::Pi0);
//! synth::write(folder.path(), &sizes, 0, synth::SynthDtype::Bf16, &|_, _| ())?;
//!
//! let checkpoint = Checkpoint::open(folder.path())?;
//! let pipeline = Pipeline::load(&checkpoint, &Options::default())?;
//! let observation = Observation {
//!     images: [("base".to_owned(), Image::from_u8(Layout::Hwc, 48, 64, vec![128; 48 * 64 * 3])?)].into(),
//!     state: vec![0.0; 8],
//!     prompt: Some("pick up the red block".to_owned()),
//! };
//! let chunk = pipeline.infer(&observation, &Request::default())?;
//! assert_eq!(chunk.actions.shape(), [10, 8]);
//! # Ok(())
//! # }
//! ```

mod pipeline;
mod request;

pub use pipeline::{LoadError, Options, Pipeline, ProfileChoice};
pub use request::{ActionChunk, Chunking, InferError, Request, Start, Timings};

pub use tensact_runtime as runtime;
pub use tensact_topology as topology;
