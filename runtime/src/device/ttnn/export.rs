//! What a deployment asks of TT-NN, as a file: `docs/ttnn.md` describes it, `tests/ttnn-mock/` replays it.

use serde::Serialize;
use tensact_topology::{
    Arch, Board, ChipId, Edge, ModelSizes, Payload, Pipeline, RequestShape, Slice, Split, StageKind,
    Transport, Variant,
};

use super::program::{
    Numerics, PrefixRows, Program, ProgramError, SocketId, StepShape, Wiring, expert_state, expert_step,
    prefix_embedding, prefix_layers, vision,
};
use super::slices::MOST_REQUESTS;

/// Version of the file's format.
const FORMAT: u32 = 1;

/// The TT-NN that programs are written for.
pub const TTNN_VERSION: &str = "0.69";

/// Programs of all slices of a pipeline, and the ways between their chips.
#[derive(Debug, Clone, Serialize)]
pub struct Export {
    format: u32,
    ttnn: &'static str,
    board: String,
    arch: Arch,
    /// Numbers of the board's chips, row by row; programs and sockets name chips by them.
    chips: Vec<ChipId>,
    /// Rows and columns of the board's mesh.
    mesh: (u32, u32),
    /// Ways from chip to chip.
    pub sockets: Vec<SocketEntry>,
    /// In the order in which a request meets them.
    pub programs: Vec<PlacedProgram>,
}

/// A way from one chip to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketEntry {
    id: SocketId,
    from_chip: ChipId,
    to_chip: ChipId,
}

/// A program and the chip it is for.
#[derive(Debug, Clone, Serialize)]
pub struct PlacedProgram {
    /// The chip.
    pub chip: ChipId,
    /// What it does there.
    #[serde(flatten)]
    pub program: Program,
}

/// A pipeline cannot be written as programs.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A call would be refused.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Layers that are split over chips have no program yet.
    #[error(
        "{stage} layers {layers} are split by tensor over {chips} chips, for which there are no TT-NN programs: \
         give each layer to one chip"
    )]
    TensorSplit {
        /// The stage.
        stage: StageKind,
        /// Its layers.
        layers: tensact_topology::LayerRange,
        /// Chips that share them.
        chips: usize,
    },
}

/// The programs of a pipeline on a board, for requests of one shape.
///
/// # Errors
/// When a slice has no program.
pub fn export(
    board: &Board,
    pipeline: &Pipeline,
    sizes: &ModelSizes,
    request: &RequestShape,
) -> Result<Export, ExportError> {
    let mut exporter = Exporter { board, pipeline, sizes, request, sockets: Vec::new() };
    let programs = exporter.programs()?;
    Ok(Export {
        format: FORMAT,
        ttnn: TTNN_VERSION,
        board: board.name.clone(),
        arch: board.arch(),
        chips: board.chips().iter().map(|chip| chip.id).collect(),
        mesh: board.rows_and_columns(),
        sockets: exporter.sockets,
        programs,
    })
}

struct Exporter<'a> {
    board: &'a Board,
    pipeline: &'a Pipeline,
    sizes: &'a ModelSizes,
    request: &'a RequestShape,
    sockets: Vec<SocketEntry>,
}

impl Exporter<'_> {
    fn programs(&mut self) -> Result<Vec<PlacedProgram>, ExportError> {
        let mut programs = Vec::new();
        for (place, slice) in self.pipeline.slices.iter().enumerate() {
            if slice.split == Split::Tensor && slice.chips.len() > 1 {
                let (stage, layers, chips) = (slice.stage, slice.layers, slice.chips.len());
                return Err(ExportError::TensorSplit { stage, layers, chips });
            }
            for (index, chip) in slice.chips.iter().enumerate() {
                let of_chip = match slice.stage {
                    StageKind::Vision => self.vision(place, slice, index)?,
                    StageKind::Prefix => self.prefix(place, slice, *chip)?,
                    StageKind::Expert => self.expert(place, slice, *chip)?,
                };
                programs.extend(of_chip.into_iter().map(|program| PlacedProgram { chip: *chip, program }));
            }
        }
        Ok(programs)
    }

    /// The way of an edge between two chips, if fabric carries it.
    fn socket(&mut self, transport: Transport, from: ChipId, to: ChipId) -> Option<SocketId> {
        if from == to || transport == Transport::Host || self.board.socket_link(from, to).is_none() {
            return None;
        }
        let known = self.sockets.iter().find(|socket| (socket.from_chip, socket.to_chip) == (from, to));
        if let Some(socket) = known {
            return Some(socket.id);
        }
        let id = SocketId(self.sockets.len() as u32);
        self.sockets.push(SocketEntry { id, from_chip: from, to_chip: to });
        Some(id)
    }

    /// Edges that end or begin at a slice.
    fn edges(&self, place: usize) -> (Vec<Edge>, Vec<Edge>) {
        let edges = self.pipeline.edges();
        let ends = edges.iter().filter(|edge| edge.to == place).copied().collect();
        (ends, edges.into_iter().filter(|edge| edge.from == place).collect())
    }

    fn slice(&self, place: usize) -> &Slice {
        &self.pipeline.slices[place]
    }

    /// Cameras whose images a chip of a vision slice takes.
    fn cameras(&self, slice: &Slice, index: usize) -> Vec<usize> {
        let chips = slice.camera_chips();
        (0..self.request.cameras).filter(|camera| chips == 1 || camera % chips == index).collect()
    }

    fn vision(&mut self, place: usize, slice: &Slice, index: usize) -> Result<Vec<Program>, ExportError> {
        let cameras = self.cameras(slice, index);
        if cameras.is_empty() {
            return Ok(Vec::new());
        }
        let chip = slice.chips[index];
        let mut wiring = Wiring::default();
        let (ends, begins) = self.edges(place);
        for (image, camera) in cameras.iter().enumerate() {
            for edge in &ends {
                let from = self.slice(edge.from).clone();
                if let Some(socket) = self.socket(from.transport, chip_of(&from, *camera), chip) {
                    wiring.receive.insert(format!("hidden {image}"), socket);
                }
            }
            for edge in &begins {
                let receiver = chip_of(self.slice(edge.to), *camera);
                if let Some(socket) = self.socket(slice.transport, chip, receiver) {
                    wiring.send.extend(["hidden", "image"].map(|what| (format!("{what} {image}"), socket)));
                }
            }
        }
        let (tower, width) = (&self.sizes.vision, self.sizes.vlm.width);
        let (grid, numerics) = (tower.image / tower.patch, Numerics::of(slice.weights));
        Ok(vec![vision(tower, width, slice.layers, cameras.len(), grid, numerics, wiring)?])
    }

    fn prefix(&mut self, place: usize, slice: &Slice, chip: ChipId) -> Result<Vec<Program>, ExportError> {
        let numerics = Numerics::of(slice.weights);
        let (mut embedding, mut layers) = (Wiring::default(), Wiring::default());
        let (ends, begins) = self.edges(place);
        for edge in ends {
            let from = self.slice(edge.from).clone();
            for (index, sender) in from.chips.iter().enumerate() {
                let Some(socket) = self.socket(from.transport, *sender, chip) else { continue };
                if edge.payload == Payload::ImageTokens {
                    let cameras = self.cameras(&from, index).into_iter();
                    embedding.receive.extend(cameras.map(|camera| (format!("image {camera}"), socket)));
                } else {
                    layers.receive.insert("hidden".into(), socket);
                }
            }
        }
        for edge in begins {
            let to = self.slice(edge.to).clone();
            let Some(socket) = self.socket(slice.transport, chip, to.chips[0]) else { continue };
            if edge.payload == Payload::Cache {
                layers.send.extend(shared(slice, &to).flat_map(|layer| cache_of(layer, "", socket)));
            } else {
                layers.send.insert("hidden".into(), socket);
            }
        }
        let mut programs = Vec::new();
        if slice.layers.start() == 0 {
            let (cameras, tokens) = (self.request.cameras, self.request.prompt_tokens);
            let patches = self.sizes.vision.patches();
            programs.push(prefix_embedding(self.sizes, cameras, patches, tokens, numerics, embedding)?);
        }
        programs.push(prefix_layers(self.sizes, slice.layers, self.rows(), numerics, layers)?);
        Ok(programs)
    }

    fn expert(&mut self, place: usize, slice: &Slice, chip: ChipId) -> Result<Vec<Program>, ExportError> {
        let numerics = Numerics::of(slice.weights);
        let pi0 = self.sizes.variant == Variant::Pi0;
        let depth = self.sizes.expert.layers;
        let requests = self.request.batch.clamp(1, MOST_REQUESTS);
        let (mut state, mut step) = (Wiring::default(), Wiring::default());
        let (ends, begins) = self.edges(place);
        for edge in ends {
            let from = self.slice(edge.from).clone();
            if edge.payload == Payload::Step && slice.layers.start() == 0 {
                // What closes a ring is a velocity, which the host integrates.
                continue;
            }
            let Some(socket) = self.socket(from.transport, from.chips[0], chip) else { continue };
            if edge.payload == Payload::Step {
                state.receive.insert("hidden".into(), socket);
                step.receive.extend(hidden_of(requests, socket));
                continue;
            }
            for layer in shared(slice, &from) {
                // The state token meets keys and values first; in the last layer it attends to nothing.
                if pi0 && layer + 1 < depth {
                    state.receive.extend(cache_of(layer, "", socket));
                } else {
                    step.receive.extend(cache_of(layer, " of 0", socket));
                }
            }
        }
        for edge in begins.into_iter().filter(|_| slice.layers.end() < depth) {
            let receiver = self.slice(edge.to).chips[0];
            let Some(socket) = self.socket(slice.transport, chip, receiver) else { continue };
            state.send.insert("hidden".into(), socket);
            step.send.extend(hidden_of(requests, socket));
        }
        let mut programs = Vec::new();
        let prefix = self.rows();
        if pi0 {
            programs.push(expert_state(self.sizes, slice.layers, prefix, numerics, state)?);
        }
        let shape = StepShape { requests, prefix, steps: self.request.steps };
        programs.push(expert_step(self.sizes, slice.layers, shape, numerics, step)?);
        Ok(programs)
    }

    /// Rows of the prefix.
    fn rows(&self) -> PrefixRows {
        PrefixRows::holding(self.request.prefix_tokens(self.sizes))
    }
}

/// Layers that both ends of a cache's way hold.
fn shared(a: &Slice, b: &Slice) -> impl Iterator<Item = usize> + use<> {
    let other = b.layers;
    a.layers.iter().filter(move |layer| other.contains(*layer))
}

/// The chip of a slice that takes a camera's image.
fn chip_of(slice: &Slice, camera: usize) -> ChipId {
    slice.chips[camera % slice.camera_chips()]
}

/// Hidden states of some requests as programs name them.
fn hidden_of(requests: usize, socket: SocketId) -> impl Iterator<Item = (String, SocketId)> {
    (0..requests).map(move |request| (format!("hidden of {request}"), socket))
}

/// Keys and values of a layer as programs name them.
fn cache_of(layer: usize, place: &str, socket: SocketId) -> [(String, SocketId); 2] {
    ["keys", "values"].map(|what| (format!("{what} {layer}{place}"), socket))
}
