//! Any bytes as a safetensors file: opened, and every tensor of it read.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use tensact_runtime::tensor_file::TensorFile;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("the temporary folder can be written");
    file.write_all(bytes).expect("the temporary folder has room");
    let Ok(opened) = TensorFile::open(file.path()) else { return };
    for tensor in opened.tensors().values() {
        let values = if tensor.is_float() { Some(tensor.to_f32().len()) } else { None };
        let values = values.or_else(|| Some(tensor.to_integers()?.len()));
        assert!(values.is_none_or(|values| values == tensor.elements()));
    }
});
