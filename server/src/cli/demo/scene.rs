//! A table with a red block and a gripper that comes nearer, seen by two cameras.

use tensact::runtime::observation::{Image, Layout, Observation};

/// What the robot is told.
pub(super) const INSTRUCTION: &str = "pick up the red block";

const SIDE: usize = 256;
const TABLE: [u8; 3] = [196, 172, 140];
const SHADE: [u8; 3] = [120, 108, 96];
const BLOCK: [u8; 3] = [200, 40, 36];
const GRIPPER: [u8; 3] = [60, 64, 72];

/// The observation at a frame of a robot's stream, as a LIBERO robot would send it. Robots start from different sides.
pub(super) fn observation(robot: usize, frame: usize) -> Observation {
    let progress = (frame as f32 / 16.0).min(1.0);
    let start = 0.15 + 0.3 * (robot % 3) as f32;
    let (x, y) = (start + (0.6 - start) * progress, 0.2 + 0.4 * progress);
    let base = draw(&[(0.62, 0.62, 0.08, BLOCK), (x, y, 0.05, GRIPPER)]);
    let wrist = draw(&[(0.5, 0.5, 0.1 + 0.3 * progress, BLOCK), (0.5, 0.95, 0.12, GRIPPER)]);
    Observation {
        images: [("observation/image".to_owned(), base), ("observation/wrist_image".to_owned(), wrist)]
            .into(),
        state: vec![x, y, 0.4 - 0.3 * progress, 0.0, 3.1, 0.0, 0.04, -0.04],
        prompt: Some(INSTRUCTION.into()),
    }
}

/// Squares (centre, half side, colour) on a table that darkens to the front.
fn draw(squares: &[(f32, f32, f32, [u8; 3])]) -> Image {
    let mut pixels = Vec::with_capacity(SIDE * SIDE * 3);
    for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
        let (y, x) = (row as f32 / SIDE as f32, column as f32 / SIDE as f32);
        let hit = |&&(cx, cy, half, _): &&(f32, f32, f32, _)| (x - cx).abs() < half && (y - cy).abs() < half;
        let table = std::array::from_fn(|i| {
            (f32::from(TABLE[i]) + y * (f32::from(SHADE[i]) - f32::from(TABLE[i]))) as u8
        });
        let colour: [u8; 3] = squares.iter().rev().find(hit).map_or(table, |square| square.3);
        pixels.extend(colour);
    }
    Image::from_u8(Layout::Hwc, SIDE, SIDE, pixels).expect("a square of three bytes a pixel is an image")
}
