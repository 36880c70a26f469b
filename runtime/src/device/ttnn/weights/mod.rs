//! Weights of programs, made from a checkpoint as their recipes say and kept as the chip stores them.

mod cache;
mod source;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::bfp8;
use super::packed::{Packed, Values};
use super::program::{Dtype, Recipe, TensorSpec};
use crate::checkpoint::Checkpoint;
use crate::device::host::HostDevice;
pub use cache::WeightCache;
use source::Source;

/// Weights below this many bytes are packed before a file is found.
const LEAST_CACHED: usize = 1 << 20;

/// A weight cannot be made from the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// The checkpoint has no such tensor.
    #[error(
        "the checkpoint has no tensor `{0}`: was the program built for a policy of another kind or other sizes?"
    )]
    Missing(String),
    /// A tensor has another size than the recipe needs.
    #[error("tensor `{tensor}` is {found:?}, the program needs {expected}: was it built for other sizes?")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What the recipe takes.
        expected: String,
    },
    /// The recipe makes another shape, or a type that no weight has.
    #[error("its recipe makes {} × {} floats, the program declares {spec}", .made[0], .made[1])]
    Spec {
        /// Rows and columns.
        made: [usize; 2],
        /// What the program says.
        spec: TensorSpec,
    },
    /// A table of a number of steps that cannot be.
    #[error(transparent)]
    Steps(#[from] crate::model::flow::BadSteps),
}

/// The weights of one checkpoint: programs that use the same ones share them, and nobody else keeps them.
pub struct Weights {
    device: Arc<HostDevice>,
    checkpoint: Checkpoint,
    cache: Option<WeightCache>,
    made: Mutex<HashMap<String, Weak<Packed>>>,
}

impl Weights {
    /// Those of a checkpoint, made by this device's threads whenever they are needed.
    pub fn new(device: Arc<HostDevice>, checkpoint: &Checkpoint) -> Self {
        Self { device, checkpoint: checkpoint.clone(), cache: None, made: Mutex::default() }
    }

    /// The same, with large `bfp8_b` weights taken from this cache and kept in it. Other types are hardly more than a copy
    /// of the checkpoint.
    pub fn cached_in(self, cache: WeightCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The threads that make weights.
    pub fn device(&self) -> &Arc<HostDevice> {
        &self.device
    }

    /// A weight: as it is kept by whoever uses it already, or made now.
    ///
    /// # Errors
    /// When the checkpoint has not what the recipe takes, or the recipe does not make what `spec` says.
    pub fn get(&self, recipe: &Recipe, spec: TensorSpec) -> Result<Arc<Packed>, WeightError> {
        let key = key(recipe, spec);
        // Held while a weight is made: two programs that are loaded together then make it once. A poisoned map is still
        // a map of whole weights.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let weight = Arc::new(self.make(recipe, spec)?);
        made.retain(|_, weight| weight.strong_count() > 0);
        made.insert(key, Arc::downgrade(&weight));
        Ok(weight)
    }

    fn make(&self, recipe: &Recipe, spec: TensorSpec) -> Result<Packed, WeightError> {
        let source = Source::of(&self.device, &self.checkpoint, recipe)?;
        let made = source.shape();
        let refused = || WeightError::Spec { made, spec };
        if spec.shape != [1, 1, made[0], made[1]] {
            return Err(refused());
        }
        let pack = || {
            let packed = Packed::make(&self.device, spec.dtype, made, &|rows, out| source.fill(rows, out));
            packed.ok_or_else(refused)
        };
        let (Some(cache), Dtype::Bfp8B, Some(tensors)) = (&self.cache, spec.dtype, source.tensors()) else {
            return pack();
        };
        if spec.bytes() < LEAST_CACHED {
            return pack();
        }
        let entry = cache.entry(&self.device, &key(recipe, spec), &tensors);
        if let Some(words) = entry.read(&self.device, bfp8::words(made[0], made[1])) {
            return Ok(Packed::of_tiles(made, words));
        }
        let packed = pack()?;
        if let Values::Bfp8B(words) = packed.values() {
            entry.write(&self.device, words);
        }
        Ok(packed)
    }
}

/// All that the values of a weight follow from, but the checkpoint: recipe, shape and dtype.
fn key(recipe: &Recipe, TensorSpec { shape, dtype, .. }: TensorSpec) -> String {
    format!("{shape:?} {dtype} {recipe:?}")
}

#[cfg(test)]
mod tests;
