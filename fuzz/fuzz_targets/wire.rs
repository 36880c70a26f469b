//! Any bytes as a message: as msgpack and as JSON; what is read can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tensact_server::wire::{read_json, read_msgpack, write_msgpack};

fuzz_target!(|bytes: &[u8]| {
    let _ = read_json(bytes);
    let Ok(value) = read_msgpack(bytes) else { return };
    let _ = value.numbers();
    let again = write_msgpack(&value);
    // Not compared: NaN equals nothing, and a map that is an array once more than it was is read as one.
    let _ = read_msgpack(&again);
});
