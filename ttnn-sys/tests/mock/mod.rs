//! Where the tests run: on the chips of the machine, on the mock chips that the environment names, or else on four mock
//! p150 boards in a ring.

#![allow(dead_code)] // no test file uses all of it

use std::{
    env,
    io::Write as _,
    path::Path,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};
use ttnn_sys::{DataType, Layout, Memory, Mesh, MeshOptions, MeshShape, Tensor};

const DESCRIPTOR: &str = "TT_METAL_MOCK_CLUSTER_DESC_PATH";
/// Where TT-NN writes what it generates; the working folder else.
const LOGS: &str = "TT_METAL_LOGS_PATH";
const SLOW_DISPATCH: &str = "TT_METAL_SLOW_DISPATCH_MODE";

/// A process opens one mesh at a time, and cargo runs the tests of a file in one process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The turn of one test. Keep it as long as a mesh is open.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static ANNOUNCE: Once = Once::new();
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ANNOUNCE.call_once(|| {
        // SAFETY: no other thread reads the environment: the other tests wait for their turn, and TT-NN has not
        // started.
        unsafe {
            if env::var_os(LOGS).is_none() {
                env::set_var(LOGS, env!("CARGO_TARGET_TMPDIR"));
            }
            if !has_chip() && env::var_os(DESCRIPTOR).is_none() {
                let boards = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mock/p150x4.yaml");
                env::set_var(DESCRIPTOR, boards);
                env::set_var(SLOW_DISPATCH, "1");
            }
        }
        say(if has_chip() { "runs on chips" } else { "runs on mock chips, which check and compute nothing" });
    });
    turn
}

/// Whether there is a chip that can compute.
pub(crate) fn has_chip() -> bool {
    Path::new("/dev/tenstorrent").is_dir()
}

/// Past the test harness, which shows nothing of a test that passes.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "    {text}");
}

/// Says that a test needs a chip and there is none, by name.
pub(crate) fn skipped(test: &str, why: &str) {
    say(&format!("{test} is SKIPPED: there is no chip, and mock chips {why}"));
}

/// Whether there are so many chips; says that the test is skipped where not.
pub(crate) fn has_chips(needed: usize, test: &str) -> bool {
    let present = ttnn_sys::machine().unwrap().chips;
    if present < needed {
        say(&format!("{test} is SKIPPED: it needs {needed} chips, and there are {present}"));
    }
    present >= needed
}

pub(crate) fn options(rows: u32, cols: u32) -> MeshOptions {
    MeshOptions::new(MeshShape { rows, cols })
}

pub(crate) fn one_chip() -> Mesh {
    Mesh::open(&options(1, 1)).unwrap()
}

/// bf16 tiles in DRAM.
pub(crate) fn bf16(mesh: &Mesh, shape: &[u32]) -> Tensor {
    empty(mesh, shape, DataType::Bf16)
}

pub(crate) fn empty(mesh: &Mesh, shape: &[u32], dtype: DataType) -> Tensor {
    Tensor::empty(mesh, shape, dtype, Layout::Tile, Memory::Dram).unwrap()
}
