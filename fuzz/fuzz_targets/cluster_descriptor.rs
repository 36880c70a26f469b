//! Any text as a cluster descriptor; what is one becomes a board and is held against the presets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tensact_topology::descriptor::{Cluster, Descriptor};

fuzz_target!(|text: &str| {
    if let Ok(cluster) = Cluster::parse("input.yaml", text) {
        let descriptor = Descriptor::Cluster(cluster);
        let _ = descriptor.board();
        let _ = descriptor.recognise();
    }
});
