mod full_size;
mod ops;
mod programs;
mod running;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Interpreter;
use crate::checkpoint::Checkpoint;

/// A file of the golden tensors of `tiny_pi0` or `tiny_pi05`.
fn golden(policy: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(policy).join(file)
}

fn checkpoint(policy: &str) -> Checkpoint {
    Checkpoint::open(&golden(policy, "model_openpi_bf16.safetensors")).unwrap()
}

/// A chip with the weights of `tiny_pi0`, for calls that need none.
fn chip() -> Arc<Interpreter> {
    static CHIP: OnceLock<Arc<Interpreter>> = OnceLock::new();
    Arc::clone(CHIP.get_or_init(|| Interpreter::new(&checkpoint("tiny_pi0"), NonZeroUsize::new(2)).unwrap()))
}
