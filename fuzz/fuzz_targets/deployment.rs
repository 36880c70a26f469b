//! Any text as a deployment.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tensact_topology::Deployment;

fuzz_target!(|text: &str| {
    let _ = Deployment::parse("input.toml", text);
});
