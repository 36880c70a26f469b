//! Resizing gives Pillow's pixels, as openpi-client does.

use tensact_runtime::Tensor;
use tensact_runtime::observation::{Image, Layout};
use tensact_runtime::preprocess::image::resize_with_pad;

use crate::fixture;

fn pixels(path: &str) -> (usize, usize, Vec<u8>) {
    let image = ::image::open(fixture(path)).unwrap().into_rgb8();
    (image.height() as usize, image.width() as usize, image.into_raw())
}

/// Largest difference from a Pillow image, in steps of a u8.
fn difference(tensor: &Tensor, path: &str) -> f32 {
    let (height, width, expected) = pixels(path);
    assert_eq!(tensor.shape(), [3, height, width]);
    let plane = height * width;
    let value = |at: usize| (tensor.data()[at % 3 * plane + at / 3] + 1.0) / 2.0 * 255.0;
    expected.iter().enumerate().map(|(at, &byte)| (value(at) - f32::from(byte)).abs()).fold(0.0, f32::max)
}

const CASES: [(&str, &str, usize); 4] = [
    ("image/wide.png", "image/wide_28.png", 28),
    ("image/tall.png", "image/tall_28.png", 28),
    ("image/small.png", "image/small_28.png", 28),
    ("image/odd.png", "image/odd_27.png", 27),
];

#[test]
fn u8_images_are_within_one_step_of_pillow() {
    for (from, to, side) in CASES {
        let tensor = resize_with_pad(&Image::open(&fixture(from)).unwrap(), side).unwrap();
        assert!(difference(&tensor, to) < 1.01, "{from}: {}", difference(&tensor, to));
    }
}

#[test]
fn float_images_are_within_one_step_of_pillow() {
    for (from, to, side) in CASES {
        let (height, width, bytes) = pixels(from);
        let floats = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        let image = Image::from_f32(Layout::Hwc, height, width, floats).unwrap();
        let tensor = resize_with_pad(&image, side).unwrap();
        assert!(difference(&tensor, to) < 1.01, "{from}: {}", difference(&tensor, to));
    }
}

#[test]
fn an_image_of_the_right_size_is_not_touched() {
    let bytes: Vec<u8> = (0..5 * 5 * 3).map(|value| (value * 37 % 256) as u8).collect();
    let tensor = resize_with_pad(&Image::from_u8(Layout::Chw, 5, 5, bytes.clone()).unwrap(), 5).unwrap();
    let expected: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0 * 2.0 - 1.0).collect();
    assert_eq!(tensor.data(), expected);
    let floats: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let tensor = resize_with_pad(&Image::from_f32(Layout::Chw, 5, 5, floats.clone()).unwrap(), 5).unwrap();
    assert_eq!(tensor.data(), floats.iter().map(|value| value * 2.0 - 1.0).collect::<Vec<_>>());
}

#[test]
fn padding_is_black_and_centred() {
    let image = Image::from_u8(Layout::Hwc, 2, 8, vec![255; 48]).unwrap();
    let tensor = resize_with_pad(&image, 8).unwrap();
    for row in 0..24 {
        let expected = if (3..5).contains(&(row % 8)) { 1.0 } else { -1.0 };
        assert_eq!(tensor.row(row), [expected; 8], "row {row}");
    }
}

#[test]
fn a_line_of_pixels_becomes_a_line() {
    let image = Image::from_u8(Layout::Hwc, 1, 4000, vec![255; 12000]).unwrap();
    let tensor = resize_with_pad(&image, 14).unwrap();
    assert_eq!(tensor.data().iter().filter(|value| **value == 1.0).count(), 3 * 14);
}

#[test]
fn jpeg_is_decoded() {
    let jpeg = Image::open(&fixture("image/odd.jpg")).unwrap();
    assert_eq!((jpeg.height(), jpeg.width()), (33, 34));
    let (_, _, png) = pixels("image/odd.png");
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    let sharp: Vec<f32> = png.iter().map(|&byte| f32::from(byte)).collect();
    let (_, _, lossy) = pixels("image/odd.jpg");
    let lossy: Vec<f32> = lossy.iter().map(|&byte| f32::from(byte)).collect();
    assert!((mean(&sharp) - mean(&lossy)).abs() < 2.0);
}
