//! Blocks of the vision tower on a chip.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, RequestShape, StageKind, VisionSizes};

use super::pool::Pool;
use super::resident::Destination;
use super::rows::{Form, ValidRows, spread_rows, widened};
use crate::Tensor;
use crate::device::host::unfold;
use crate::device::ttnn::Chip;
use crate::device::ttnn::program::{Numerics, Spread, TILE, Wiring, vision};
use crate::device::{SliceError, VisionStage};

const STAGE: StageKind = StageKind::Vision;

/// Images in one pass: what more of them cost in memory, they no longer win in time.
const MOST_IMAGES: usize = 8;

/// Some consecutive blocks of the vision tower on a chip.
pub struct TtnnVision {
    sizes: VisionSizes,
    vlm_width: usize,
    layers: LayerRange,
    numerics: Numerics,
    to: Destination,
    programs: Arc<Pool<Images>>,
}

/// So many images of so many patches a side.
#[derive(Clone, Copy, PartialEq)]
struct Images {
    count: usize,
    grid: usize,
}

impl TtnnVision {
    /// A slice on a chip that has the weights of a checkpoint of these sizes, ready for requests of this shape. What it
    /// computes goes to `to`.
    ///
    /// # Errors
    /// When the tower has no such blocks, or the chip cannot load them.
    pub fn load(
        chip: Arc<dyn Chip>,
        sizes: &ModelSizes,
        layers: LayerRange,
        numerics: Numerics,
        request: &RequestShape,
        to: Destination,
    ) -> Result<Self, SliceError> {
        SliceError::check_layers(STAGE, sizes.vision.layers, layers)?;
        let slice = Self {
            sizes: sizes.vision,
            vlm_width: sizes.vlm.width,
            layers,
            numerics,
            to,
            programs: Pool::new(chip),
        };
        let (count, grid) = (request.cameras.min(MOST_IMAGES), sizes.vision.image / sizes.vision.patch);
        let mut lease = slice.lease(Images { count, grid })?;
        for image in 0..count {
            lease.make_room(&slice.output(image), to)?;
        }
        drop(lease);
        Ok(slice)
    }

    fn lease(&self, shape: Images) -> Result<super::pool::Lease<Images, ()>, SliceError> {
        let Images { count, grid } = shape;
        let build = || {
            vision(&self.sizes, self.vlm_width, self.layers, count, grid, self.numerics, Wiring::default())
        };
        Ok(self.programs.lease(shape, build)?)
    }

    /// Some images of one shape.
    fn run_alike(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        let grid = self.grid(images[0])?;
        let (patches, rows) = (grid * grid, (grid * grid).next_multiple_of(TILE));
        let form = Form::Rows(ValidRows::first(patches, rows));
        let mut lease = self.lease(Images { count: images.len(), grid })?;
        if self.layers.start() == 0 {
            let pixels = Spread::aligned(3 * self.sizes.patch * self.sizes.patch, TILE);
            let unfolded = images.iter().map(|image| unfold(image, grid, self.sizes.patch));
            let unfolded: Vec<Vec<f32>> =
                unfolded.map(|rows| widened(&rows, pixels.values(), pixels.places())).collect();
            let blocks: Vec<&[f32]> = unfolded.iter().map(|rows| &rows[..]).collect();
            lease.write("images", &spread_rows(&blocks, pixels.places(), rows))?;
        } else {
            for (image, hidden) in images.iter().enumerate() {
                lease.take(&format!("hidden {image}"), hidden, &form)?;
            }
        }
        lease.run("embed")?;
        for layer in self.layers.iter() {
            lease.run(&format!("layer {layer}"))?;
        }
        lease.run("project")?;
        (0..images.len()).map(|image| Ok(lease.give(&self.output(image), &form, self.to)?)).collect()
    }

    /// What programs call what they make of an image.
    fn output(&self, image: usize) -> String {
        let what = if self.layers.end() == self.sizes.layers { "image" } else { "hidden" };
        format!("{what} {image}")
    }

    /// Patches a side of an image, or of hidden states.
    fn grid(&self, input: &Tensor) -> Result<usize, SliceError> {
        let VisionSizes { patch, table_side, width, .. } = self.sizes;
        let (grid, fits) = match *input.shape() {
            [3, side, columns] if self.layers.start() == 0 => {
                (side / patch, side == columns && side.is_multiple_of(patch) && side / patch >= table_side)
            }
            [patches, found] if self.layers.start() > 0 => {
                (patches.isqrt(), found == width && patches > 0 && patches.isqrt().pow(2) == patches)
            }
            _ => (0, false),
        };
        let expected = match self.layers.start() {
            0 => format!("[3, S, S] with S a multiple of {patch}, at least {}", patch * table_side),
            _ => format!("[patches of a square, {width}]"),
        };
        if fits {
            return Ok(grid);
        }
        Err(SliceError::Shape { stage: STAGE, what: "images", expected, found: input.shape().into() })
    }
}

impl VisionStage for TtnnVision {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Neighbouring images of one shape run together.
    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        let mut outputs = Vec::with_capacity(images.len());
        for alike in images.chunk_by(|a, b| a.shape() == b.shape()) {
            for together in alike.chunks(MOST_IMAGES) {
                outputs.extend(self.run_alike(together)?);
            }
        }
        Ok(outputs)
    }
}
