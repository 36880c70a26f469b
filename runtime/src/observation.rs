//! What a robot sends: camera images, the joint state and an instruction.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

/// Longest side of an image that is accepted, in pixels.
pub const MAX_SIDE: usize = 8192;

/// Most decoded bytes that one byte of a PNG (deflate: 1032) or JPEG file (1024) can stand for, rounded up.
const MOST_EXPANSION: usize = 1100;

/// Memory a decoder may take for one image, in bytes.
const DECODE_BYTES: u64 = 512 << 20;

/// One observation of a robot, in the robot's own names and units.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// Camera images, by the robot's name of the camera or the model's, as the profile reads them.
    pub images: BTreeMap<String, Image>,
    /// The robot state in raw units: the profile's state parts, one after the other.
    pub state: Vec<f32>,
    /// The instruction, if the robot sent one.
    pub prompt: Option<String>,
}

/// Order of the values of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Height, width, channel: red, green and blue of a pixel side by side.
    Hwc,
    /// Channel, height, width: three planes.
    Chw,
}

/// An RGB image of at least one pixel.
#[derive(Clone, PartialEq)]
pub struct Image {
    height: usize,
    width: usize,
    pixels: Pixels,
}

/// Values of an image, in HWC order.
#[derive(Clone, PartialEq)]
pub(crate) enum Pixels {
    /// 0 is dark, 255 is bright.
    U8(Vec<u8>),
    /// 0 is dark, 1 is bright.
    F32(Vec<f32>),
}

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A side is zero or too long.
    #[error("an image of {height}x{width} pixels; both sides must be between 1 and {MAX_SIDE}")]
    Size {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// Size and number of values do not belong together.
    #[error("an RGB image of {height}x{width} pixels has {} values, but there are {values}", height * width * 3)]
    Values {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Values given.
        values: usize,
    },
    /// More pixels than are wanted.
    #[error("an image of {height}x{width} pixels; at most {most} pixels are taken")]
    Pixels {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Most pixels.
        most: usize,
    },
    /// A float outside [0, 1].
    #[error("a float image must hold values in [0, 1], but holds {value}; send u8, or divide by 255")]
    Range {
        /// The first value outside.
        value: f32,
    },
    /// Not a PNG or JPEG file, or a damaged one.
    #[error("cannot decode the image as PNG or JPEG: {0}")]
    Decode(#[from] image::ImageError),
    /// The header promises more pixels than the file can hold.
    #[error("the header says {height}x{width} pixels, which {bytes} bytes cannot hold; the file is damaged")]
    Truncated {
        /// Rows by the header.
        height: usize,
        /// Columns by the header.
        width: usize,
        /// Length of the file.
        bytes: usize,
    },
    /// The file is no image that can be used.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<ImageError>,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Image {
    /// An image over bytes, 0 to 255, in the given order.
    ///
    /// # Errors
    /// When a side is zero or above [`MAX_SIDE`], or when `values` does not hold `height * width * 3` bytes.
    pub fn from_u8(layout: Layout, height: usize, width: usize, values: Vec<u8>) -> Result<Self, ImageError> {
        check_size(height, width, values.len())?;
        Ok(Self { height, width, pixels: Pixels::U8(interleave(layout, values)) })
    }

    /// An image over floats in [0, 1], in the given order.
    ///
    /// # Errors
    /// As [`Image::from_u8`], and when a value is not in [0, 1].
    pub fn from_f32(
        layout: Layout,
        height: usize,
        width: usize,
        values: Vec<f32>,
    ) -> Result<Self, ImageError> {
        check_size(height, width, values.len())?;
        if let Some(&value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(ImageError::Range { value });
        }
        Ok(Self { height, width, pixels: Pixels::F32(interleave(layout, values)) })
    }

    /// Decodes a PNG or JPEG file. Transparency is dropped, grey becomes RGB.
    ///
    /// # Errors
    /// When the bytes are neither, are damaged, or hold an image that is too large.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        Self::decode_within(bytes, MAX_SIDE * MAX_SIDE)
    }

    /// Decodes a PNG or JPEG file of at most so many pixels; a larger one is refused by its header.
    ///
    /// # Errors
    /// As [`Image::decode`].
    pub fn decode_within(bytes: &[u8], pixels: usize) -> Result<Self, ImageError> {
        let mut reader =
            ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(image::ImageError::IoError)?;
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE as u32);
        limits.max_image_height = Some(MAX_SIDE as u32);
        limits.max_alloc = Some(DECODE_BYTES);
        reader.limits(limits);
        let decoder = reader.into_decoder()?;
        let (width, height) = decoder.dimensions();
        let (width, height) = (width as usize, height as usize);
        if width.saturating_mul(height) > pixels {
            return Err(ImageError::Pixels { height, width, most: pixels });
        }
        if decoder.total_bytes() > bytes.len().saturating_mul(MOST_EXPANSION) as u64 {
            return Err(ImageError::Truncated { height, width, bytes: bytes.len() });
        }
        Self::from_u8(Layout::Hwc, height, width, DynamicImage::from_decoder(decoder)?.into_rgb8().into_raw())
    }

    /// Decodes a PNG or JPEG file on disk.
    ///
    /// # Errors
    /// As [`Image::decode`], and when the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let bytes =
            std::fs::read(path).map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
        Self::decode(&bytes)
            .map_err(|error| ImageError::File { path: path.to_owned(), error: Box::new(error) })
    }

    /// Rows, in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns, in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn pixels(&self) -> &Pixels {
        &self.pixels
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.pixels {
            Pixels::U8(_) => "u8",
            Pixels::F32(_) => "f32",
        };
        write!(f, "Image[{}x{} {kind}]", self.height, self.width)
    }
}

fn check_size(height: usize, width: usize, values: usize) -> Result<(), ImageError> {
    let side = 1..=MAX_SIDE;
    if !side.contains(&height) || !side.contains(&width) {
        return Err(ImageError::Size { height, width });
    }
    if height * width * 3 != values {
        return Err(ImageError::Values { height, width, values });
    }
    Ok(())
}

fn interleave<T: Copy>(layout: Layout, values: Vec<T>) -> Vec<T> {
    match layout {
        Layout::Hwc => values,
        Layout::Chw => {
            let plane = values.len() / 3;
            (0..plane)
                .flat_map(|pixel| [values[pixel], values[plane + pixel], values[2 * plane + pixel]])
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_values_are_checked() {
        assert!(matches!(Image::from_u8(Layout::Hwc, 0, 4, vec![]), Err(ImageError::Size { .. })));
        assert!(matches!(Image::from_u8(Layout::Hwc, usize::MAX, 4, vec![]), Err(ImageError::Size { .. })));
        assert!(matches!(Image::from_u8(Layout::Hwc, 2, 2, vec![0; 11]), Err(ImageError::Values { .. })));
        assert!(Image::from_f32(Layout::Chw, 1, 1, vec![0.0, 0.5, 1.0]).is_ok());
        for bad in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            let image = Image::from_f32(Layout::Chw, 1, 1, vec![0.0, bad, 1.0]);
            assert!(matches!(image, Err(ImageError::Range { .. })), "{bad}");
        }
    }

    #[test]
    fn planes_become_pixels() {
        let planes = Image::from_u8(Layout::Chw, 1, 2, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(planes, Image::from_u8(Layout::Hwc, 1, 2, vec![1, 3, 5, 2, 4, 6]).unwrap());
    }

    fn png(height: u32, width: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let pixels = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
        pixels.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        bytes
    }

    #[test]
    fn png_is_decoded() {
        let image = Image::decode(&png(2, 3)).unwrap();
        assert_eq!(
            image,
            Image::from_u8(Layout::Hwc, 2, 3, vec![0, 0, 7, 1, 0, 7, 2, 0, 7, 0, 1, 7, 1, 1, 7, 2, 1, 7])
                .unwrap()
        );
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_before_decoding() {
        let mut bytes = png(2, 2);
        let header = 16..24;
        bytes[header.clone()].copy_from_slice(&[0, 0, 0x1f, 0xff, 0, 0, 0x1f, 0xff]);
        let sum = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&sum.to_be_bytes());
        assert!(matches!(Image::decode(&bytes), Err(ImageError::Truncated { .. })));
    }

    #[test]
    fn too_many_pixels_are_refused_by_the_header() {
        let bytes = png(3, 4);
        assert!(Image::decode_within(&bytes, 12).is_ok());
        let refused = Image::decode_within(&bytes, 11);
        assert!(matches!(refused, Err(ImageError::Pixels { height: 3, width: 4, most: 11 })));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |sum, &byte| {
            (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
        })
    }

    proptest! {
        #[test]
        fn junk_never_panics(junk: Vec<u8>, cut in 0usize..100, flip in 0usize..100, to: u8) {
            prop_assert!(Image::decode(&junk).is_err());
            let mut damaged = png(5, 4);
            let flip = flip % damaged.len();
            damaged[flip] = to;
            damaged.truncate(damaged.len().saturating_sub(cut).max(1));
            let _ = Image::decode(&damaged);
        }
    }
}
