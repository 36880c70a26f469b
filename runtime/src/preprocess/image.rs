//! Camera images to model input: resize with pad, then [-1, 1], as openpi-client `image_tools.py` and openpi
//! `model.py` do. Padding is black.

use fast_image_resize::images::{Image as Canvas, ImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer};

use crate::Tensor;
use crate::observation::{Image, Pixels};

/// The image as the vision tower takes it: `[3, side, side]`, values in [-1, 1].
///
/// An image of another size is scaled to fit, keeping its aspect ratio, and centred on black. u8 images follow
/// Pillow's antialiased bilinear filter as openpi-client does; LeRobot resizes floats without antialiasing.
/// Float images go through the same filter in f32, where openpi first rounds them down to u8.
///
/// # Errors
/// When the resizer refuses the image, which a valid [`Image`] and a side above 0 do not bring about.
pub fn resize_with_pad(image: &Image, side: usize) -> Result<Tensor, ResizeError> {
    let (height, width) = fitted(image.height(), image.width(), side);
    let same = (height, width) == (image.height(), image.width());
    let mut tensor = Tensor::zeros([3, side, side]);
    tensor.data_mut().fill(-1.0);
    let place = Place { top: (side - height) / 2, left: (side - width) / 2, width, side };
    match image.pixels() {
        Pixels::U8(values) if same => place.paste(&mut tensor, values, |value| scale_u8(*value)),
        Pixels::F32(values) if same => place.paste(&mut tensor, values, |value| scale(*value)),
        Pixels::U8(values) => {
            let resized = resize(image, values, PixelType::U8x3, height, width)?;
            place.paste(&mut tensor, resized.buffer(), |value| scale_u8(*value));
        }
        Pixels::F32(values) => {
            let resized = resize(image, bytemuck::cast_slice(values), PixelType::F32x3, height, width)?;
            let typed = resized.typed_image::<F32x3>().ok_or(ResizeError::PixelTypesAreDifferent)?;
            let values: Vec<f32> = typed.pixels().iter().flat_map(|pixel| pixel.0).collect();
            place.paste(&mut tensor, &values, |value| scale(*value));
        }
    }
    Ok(tensor)
}

/// Height and width of the image scaled into a square, rounded down as openpi-client does, but at least 1.
fn fitted(height: usize, width: usize, side: usize) -> (usize, usize) {
    let ratio = (height as f64 / side as f64).max(width as f64 / side as f64);
    let fit = |length: usize| ((length as f64 / ratio) as usize).clamp(1, side);
    (fit(height), fit(width))
}

fn resize(
    image: &Image,
    bytes: &[u8],
    pixel: PixelType,
    height: usize,
    width: usize,
) -> Result<Canvas<'static>, ResizeError> {
    let source = ImageRef::new(image.width() as u32, image.height() as u32, bytes, pixel)
        .map_err(|_| ResizeError::PixelTypesAreDifferent)?;
    let mut canvas = Canvas::new(width as u32, height as u32, pixel);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    Resizer::new().resize(&source, &mut canvas, &options)?;
    Ok(canvas)
}

fn scale_u8(value: u8) -> f32 {
    f32::from(value) / 255.0 * 2.0 - 1.0
}

fn scale(value: f32) -> f32 {
    value.clamp(0.0, 1.0) * 2.0 - 1.0
}

/// Where the scaled image stands on the square.
struct Place {
    top: usize,
    left: usize,
    width: usize,
    side: usize,
}

impl Place {
    /// Writes HWC values to their place in the CHW tensor.
    fn paste<T>(&self, tensor: &mut Tensor, values: &[T], scale: impl Fn(&T) -> f32) {
        let plane = self.side * self.side;
        for (y, row) in values.chunks_exact(self.width * 3).enumerate() {
            let start = (self.top + y) * self.side + self.left;
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                for (channel, value) in pixel.iter().enumerate() {
                    tensor.data_mut()[channel * plane + start + x] = scale(value);
                }
            }
        }
    }
}
