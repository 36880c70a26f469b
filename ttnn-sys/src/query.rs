//! What an operation would take of each core's memory.

use crate::{DataType, Error, Layout, Mesh, Result, Tensor, bridge::ffi, gate};

/// What an operation takes while it runs, in bytes of the L1 of the core that has most of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// Circular buffers, through which data flow between the parts of a kernel. TT-NN 0.69 does not refuse an
    /// operation whose buffers do not fit, so compare with [`Mesh::l1_bytes_per_core`].
    pub circular_buffers: u64,
    /// Tensors in L1 that were made meanwhile, at the moment when there were most.
    pub l1_buffers: u64,
    /// Both together, at the moment when they were most.
    pub peak: u64,
    /// The part of the output that lies in this core's L1.
    pub l1_output: u64,
    /// Shape of the output.
    pub output_shape: Vec<u32>,
    /// Type of the output.
    pub output_dtype: DataType,
    /// Layout of the output.
    pub output_layout: Layout,
}

/// Lets TT-NN check `work` and plan its programs, without allocating memory and without running anything. Make
/// inputs with [`Tensor::empty`] inside `work`: then they need not exist. Such tensors are of no use afterwards, and
/// every operation refuses them. All other calls of the process into TT-NN wait meanwhile, so this belongs to
/// planning and tests.
///
/// This is what TT-NN's `query_op_constraints` does, for any operation of [`ops`](crate::ops) or several.
///
/// # Errors
/// Where `work` fails, which is how TT-NN says that it cannot be done, or within another query.
pub fn query_op_constraints(mesh: &Mesh, work: impl FnOnce() -> Result<Tensor>) -> Result<Constraints> {
    const OPERATION: &str = "query_op_constraints";
    let nested = || Error::Operation { operation: OPERATION, message: "queries do not nest".to_owned() };
    let _alone = gate::alone().ok_or_else(nested)?;
    let query = ffi::begin_query().map_err(|exception| Error::operation(OPERATION, &exception))?;
    let output = work()?;
    let used = mesh.run(OPERATION, |mesh| ffi::end_query(&query, mesh, output.raw()))?;
    Ok(Constraints {
        circular_buffers: used.circular_buffers,
        l1_buffers: used.l1_buffers,
        peak: used.peak,
        l1_output: used.l1_output,
        output_shape: output.shape().to_vec(),
        output_dtype: output.dtype(),
        output_layout: output.layout(),
    })
}
