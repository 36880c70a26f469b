//! Weights of programs, made from a checkpoint as their recipes say and kept as the chip stores them.

mod source;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::packed::Packed;
use super::program::{Recipe, TensorSpec};
use crate::checkpoint::Checkpoint;
use crate::device::host::HostDevice;
use source::Source;

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
    made: Mutex<HashMap<String, Weak<Packed>>>,
}

impl Weights {
    /// Those of a checkpoint, made by this device's threads.
    pub fn new(device: Arc<HostDevice>, checkpoint: &Checkpoint) -> Self {
        Self { device, checkpoint: checkpoint.clone(), made: Mutex::default() }
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
        Packed::make(&self.device, spec.dtype, made, &|rows, out| source.fill(rows, out)).ok_or_else(refused)
    }
}

/// All that the values of a weight follow from, but the checkpoint: recipe, shape and dtype.
fn key(recipe: &Recipe, TensorSpec { shape, dtype, .. }: TensorSpec) -> String {
    format!("{shape:?} {dtype} {recipe:?}")
}
