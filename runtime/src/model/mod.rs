//! What is computed, whatever the device: inputs, the KV cache, and the integration from noise to actions.

mod cache;
pub mod flow;
mod input;

pub(crate) use cache::ContentId;
pub use cache::{KeyValue, KvCache};
pub use input::ModelInput;
