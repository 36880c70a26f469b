//! What does not change: the board, what runs where, and what the plan predicts.

use serde::Serialize;
use tensact::Pipeline;
use tensact::topology::{Board, Calibration, ChipId, CostModel, DeviceKind, RequestShape, Split, StageKind};

use super::milliseconds;

/// The first event of every connection.
#[derive(Serialize)]
pub(super) struct Hello {
    version: &'static str,
    /// Tells a page that the server was started again.
    run: String,
    board: BoardShape,
    emulated: bool,
    variant: String,
    /// Time to answer that requests have by default.
    slo_ms: Option<f64>,
    pipelines: Vec<Slices>,
    predicted: Predicted,
}

#[derive(Serialize)]
struct BoardShape {
    name: String,
    rows: u32,
    columns: u32,
    chips: Vec<Chip>,
    links: Vec<[ChipId; 2]>,
}

#[derive(Serialize)]
struct Chip {
    id: ChipId,
    row: u32,
    column: u32,
    memory_bytes: u64,
    /// What the placement sets aside.
    set_aside_bytes: u64,
}

#[derive(Serialize)]
struct Slices {
    slices: Vec<Slice>,
}

#[derive(Serialize)]
struct Slice {
    stage: StageKind,
    layers: String,
    chips: Vec<ChipId>,
    split: Split,
    /// One pass, or one denoising step, of one request.
    predicted_ms: Option<f64>,
}

#[derive(Serialize)]
struct Predicted {
    /// Of a request with nothing else in flight.
    latency_ms: Option<f64>,
    /// Of all pipelines.
    requests_per_s: Option<f64>,
}

impl Hello {
    pub(super) fn new(pipeline: &Pipeline, run: String) -> Self {
        let (board, sizes) = (pipeline.board(), pipeline.sizes());
        let alone = RequestShape { batch: 1, ..pipeline.request() };
        let model = |request| CostModel::new(board, sizes, request, Calibration::shipped());
        let one = model(alone);
        let pipelines = &pipeline.placement().pipelines;
        let slice = |slice: &tensact::topology::Slice| Slice {
            stage: slice.stage,
            layers: slice.layers.to_string(),
            chips: slice.chips.clone(),
            split: slice.split,
            predicted_ms: one.slice(slice).map(|cost| cost.pass.total_ms()),
        };
        let full = model(pipeline.request());
        let rates = pipelines.iter().map(|pipeline| Some(full.pipeline(pipeline)?.requests_per_s));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            run,
            board: BoardShape::new(board, pipeline),
            emulated: pipelines
                .iter()
                .flat_map(|pipeline| &pipeline.slices)
                .all(|slice| slice.device == DeviceKind::Emulated),
            variant: sizes.variant.to_string(),
            slo_ms: pipeline.deadline().map(milliseconds),
            pipelines: pipelines
                .iter()
                .map(|pipeline| Slices { slices: pipeline.slices.iter().map(slice).collect() })
                .collect(),
            predicted: Predicted {
                latency_ms: pipelines
                    .iter()
                    .filter_map(|pipeline| Some(one.pipeline(pipeline)?.latency_ms))
                    .max_by(f64::total_cmp),
                requests_per_s: rates.sum(),
            },
        }
    }
}

impl BoardShape {
    fn new(board: &Board, pipeline: &Pipeline) -> Self {
        let (rows, columns) = board.rows_and_columns();
        let set_aside = pipeline.memory_set_aside();
        let chips = board.chips().iter().zip(0..).map(|(chip, place)| {
            let (row, column) =
                chip.at.map_or((place / columns.max(1), place % columns.max(1)), |at| (at.row, at.col));
            Chip {
                id: chip.id,
                row,
                column,
                memory_bytes: chip.spec.dram_bytes,
                set_aside_bytes: set_aside.get(&chip.id).map_or(0, |aside| aside.dram_bytes),
            }
        });
        Self {
            name: board.name.clone(),
            rows,
            columns,
            chips: chips.collect(),
            links: board.links().iter().map(|link| [link.a, link.b]).collect(),
        }
    }
}
