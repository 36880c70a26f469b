//! A machine without chips. One test: it changes the environment of its process.
#![cfg(feature = "ttnn")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

mod mock;

use std::env;
use ttnn_sys::{Error, Mesh, machine};

#[test]
fn what_is_missing_is_named() {
    if mock::has_chip() {
        return mock::say("what_is_missing_is_named is SKIPPED: there is a chip");
    }
    // SAFETY: the only test of this process; TT-NN has started no thread yet.
    unsafe {
        env::remove_var("TT_METAL_MOCK_CLUSTER_DESC_PATH");
        env::remove_var("TT_METAL_SLOW_DISPATCH_MODE");
        env::set_var("TT_METAL_LOGS_PATH", env!("CARGO_TARGET_TMPDIR"));
    }
    assert!(matches!(machine(), Err(Error::NoChip)));
    let refused = Mesh::open(&mock::options(1, 1));
    assert!(matches!(refused, Err(Error::NoChip)), "{refused:?}");

    // SAFETY: as above; nothing of TT-NN outlives a refusal.
    unsafe { env::set_var("TT_METAL_MOCK_CLUSTER_DESC_PATH", "/there/is/no/such.yaml") };
    assert!(matches!(machine(), Err(Error::MockDispatch)));
    // SAFETY: as above.
    unsafe { env::set_var("TT_METAL_SLOW_DISPATCH_MODE", "1") };
    let refused = machine().unwrap_err();
    assert!(refused.to_string().contains("/there/is/no/such.yaml does not exist"), "{refused}");
}
