//! Any message as the observation of a robot, up to what the model takes.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tensact_runtime::checkpoint::synth::SynthSize;
use tensact_runtime::config::OPENPI_CAMERAS;
use tensact_runtime::preprocess::{Preprocessor, Profile, Statistics, Tokenizer};
use tensact_server::openpi::Reader;
use tensact_server::wire::read_msgpack;
use tensact_topology::{ModelSizes, Variant};

fn robot() -> &'static (Preprocessor, ModelSizes) {
    static ROBOT: OnceLock<(Preprocessor, ModelSizes)> = OnceLock::new();
    ROBOT.get_or_init(|| {
        let sizes = SynthSize::Tiny.sizes(Variant::Pi0);
        let profile = Profile::named("generic").expect("it comes with the library");
        let tokenizer = Tokenizer::synthetic(sizes.vocab).expect("the vocabulary is large enough");
        let cameras = OPENPI_CAMERAS.map(str::to_owned).to_vec();
        let preprocessor = Preprocessor::new(sizes, cameras, profile, tokenizer, Statistics::identity());
        (preprocessor.expect("they belong together"), sizes)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (preprocessor, sizes) = robot();
    let Ok(message) = read_msgpack(bytes) else { return };
    let reader = Reader { preprocessor, sizes, image_pixels: 1 << 16 };
    if let Ok(asked) = reader.read(message) {
        let _ = preprocessor.prepare(&asked.observation);
    }
});
