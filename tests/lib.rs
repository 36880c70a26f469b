//! What the tests that cross crates share: golden folders, devices, and samples.

pub mod driver;
pub mod plain;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::host::{ComputeDtype, HostDevice};
use tensact_runtime::model::flow::Steps;
use tensact_runtime::reference::{ReferenceInputs, read_inputs};
use tensact_runtime::tensor_file::TensorFile;

/// A file of the golden tensors of `tiny_pi0` or `tiny_pi05`.
pub fn golden(policy: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(policy).join(file)
}

/// A golden file that is known to open.
pub fn open(policy: &str, file: &str) -> TensorFile {
    TensorFile::open(&golden(policy, file)).expect("golden files are sound")
}

/// A golden checkpoint that is known to open.
pub fn checkpoint(policy: &str, file: &str) -> Checkpoint {
    Checkpoint::open(&golden(policy, file)).expect("golden checkpoints are sound")
}

/// A host device of `threads` threads.
pub fn device(threads: usize, dtype: ComputeDtype) -> Arc<HostDevice> {
    HostDevice::new(NonZeroUsize::new(threads), dtype).expect("a test machine has threads")
}

/// The inputs of a golden file, for the checkpoint's own number of steps.
pub fn inputs(checkpoint: &Checkpoint, file: &TensorFile) -> ReferenceInputs {
    let steps = Steps::new(checkpoint.sizes().steps).expect("golden policies take ten steps");
    let cameras = &checkpoint.config().cameras;
    read_inputs(file, checkpoint.sizes(), cameras, steps, 0).expect("golden inputs fit their policy")
}
