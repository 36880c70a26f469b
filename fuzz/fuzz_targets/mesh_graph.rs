//! Any text as a mesh graph descriptor; what is one becomes a board and is held against the presets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tensact_topology::descriptor::{Descriptor, MeshGraph};

fuzz_target!(|text: &str| {
    if let Ok(graph) = MeshGraph::parse("input.textproto", text) {
        let descriptor = Descriptor::MeshGraph(graph);
        let _ = descriptor.board();
        let _ = descriptor.recognise();
    }
});
