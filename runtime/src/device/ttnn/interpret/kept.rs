//! Tensors that lie on interpreted chips. All chips of a board are in one process, so where they lie is only taken down.

use std::any::Any;
use std::sync::Arc;

use tensact_topology::ChipId;

use crate::device::ttnn::program::TensorSpec;
use crate::device::ttnn::{ChipError, Kept};

/// Values that are rounded to the tensor's dtype.
pub(super) struct Floats {
    pub(super) chip: ChipId,
    pub(super) spec: TensorSpec,
    pub(super) values: Arc<Vec<f32>>,
}

impl Kept for Floats {
    fn spec(&self) -> TensorSpec {
        self.spec
    }

    fn read(&self) -> Result<Vec<f32>, ChipError> {
        Ok(self.values.to_vec())
    }
}

/// The values of a tensor, and on which chip they lie; one of another kind of chip is read.
pub(super) fn values(kept: &dyn Kept) -> Result<(Option<ChipId>, Arc<Vec<f32>>), ChipError> {
    match (kept as &dyn Any).downcast_ref::<Floats>() {
        Some(floats) => Ok((Some(floats.chip), Arc::clone(&floats.values))),
        None => Ok((None, Arc::new(kept.read()?))),
    }
}
