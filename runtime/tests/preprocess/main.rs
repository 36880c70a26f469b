//! Pre- and post-processing against files and numbers of the peers (`../fixtures/make.py`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod image;
mod observation;
mod profile;
mod statistics;
mod tokenizer;

use std::path::PathBuf;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}
