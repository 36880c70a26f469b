//! Any bytes as a picture, within the limit on pixels.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tensact_runtime::observation::Image;

const PIXELS: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = Image::decode_within(bytes, PIXELS) {
        assert!(image.height() * image.width() <= PIXELS);
    }
});
