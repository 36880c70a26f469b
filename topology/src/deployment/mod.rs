//! The deployment file: which board, which checkpoint, and what runs on which chips.
//!
//! `docs/topology.md` is its reference. Reading a file finds what is wrong with the text itself; what is wrong with the
//! placement, given a board and a policy, is [`check`](crate::check)'s to find.

mod chips;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use chips::{Chips, Copies};

use crate::descriptor::{Descriptor, ReadError, read_text};
use crate::placement::{DeviceKind, Pipeline, Placement, QUEUE_MIN, Residence, Slice, Split, Transport};
use crate::source::{SourceError, line_column};
use crate::workload::{REQUEST_MAX, RequestShape};
use crate::{Arch, Board, ChipId, LayerRange, ModelSizes, Preset, StageKind, WeightDtype};

/// Requests an edge can be asked to hold.
const QUEUE_MAX: usize = 1024;

/// A number in a file that is at most `MAX`, so that no sum of sizes overflows.
fn at_most<'de, const MAX: usize, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let value = usize::deserialize(deserializer)?;
    if value > MAX {
        return Err(D::Error::custom(format!("{value} is too large: at most {MAX}")));
    }
    Ok(value)
}

/// The same for a number that may be left out.
fn optional<'de, const MAX: usize, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    at_most::<MAX, D>(deserializer).map(Some)
}

/// How many requests are computed and held together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// Requests in one pass of a stage.
    #[serde(deserialize_with = "at_most::<{ REQUEST_MAX.batch }, _>")]
    pub max_requests: usize,
    /// Requests that one pipeline works on at a time.
    #[serde(deserialize_with = "at_most::<{ QUEUE_MAX * REQUEST_MAX.batch }, _>")]
    pub max_in_flight: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Self { max_requests: 1, max_in_flight: 2 }
    }
}

/// The queue in front of all pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Observations that wait; one more is refused.
    pub queue: usize,
}

impl Default for Admission {
    fn default() -> Self {
        Self { queue: 64 }
    }
}

/// When a request is too late.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// Deadline of requests that name none; none means they may take as long as they take.
    pub default_ms: Option<f64>,
}

/// The part of a request that decides sizes; what is left out comes from the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RequestEntry {
    #[serde(deserialize_with = "optional::<{ REQUEST_MAX.cameras }, _>")]
    cameras: Option<usize>,
    #[serde(deserialize_with = "optional::<{ REQUEST_MAX.prompt_tokens }, _>")]
    prompt_tokens: Option<usize>,
    #[serde(deserialize_with = "optional::<{ REQUEST_MAX.steps }, _>")]
    steps: Option<usize>,
}

/// Where the board of a deployment comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoardSource {
    /// A preset.
    Preset(Preset),
    /// A descriptor file, relative to the deployment file.
    Descriptor(PathBuf),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    board: Option<Spanned<String>>,
    cluster: Option<Spanned<PathBuf>>,
    mesh_graph: Option<Spanned<PathBuf>>,
    checkpoint: String,
    #[serde(default)]
    request: RequestEntry,
    #[serde(default)]
    batching: Batching,
    #[serde(default)]
    admission: Admission,
    #[serde(default)]
    deadlines: Deadlines,
    /// Who is served, and how, is read by the server: see [`Deployment::tables`].
    #[serde(rename = "robot")]
    _robot: Option<IgnoredAny>,
    #[serde(rename = "server")]
    _server: Option<IgnoredAny>,
    #[serde(rename = "telemetry")]
    _telemetry: Option<IgnoredAny>,
    pipeline: Vec<Spanned<PipelineEntry>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineEntry {
    chips: Option<Spanned<Chips>>,
    copies: Option<Spanned<Copies>>,
    weights: Option<WeightDtype>,
    device: Option<DeviceKind>,
    transport: Option<Transport>,
    #[serde(default, deserialize_with = "optional::<QUEUE_MAX, _>")]
    queue: Option<usize>,
    resident: Option<Residence>,
    #[serde(default)]
    stage: Vec<Spanned<StageEntry>>,
}

/// Settings of a stage, or of all stages of a pipeline that do not have their own.
#[derive(Debug, Clone, Copy, Default)]
struct Settings {
    weights: Option<WeightDtype>,
    device: Option<DeviceKind>,
    transport: Option<Transport>,
    queue: Option<usize>,
    resident: Option<Residence>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct StageEntry {
    kind: StageKind,
    layers: Option<LayerRange>,
    chips: Spanned<Chips>,
    split: Option<Split>,
    weights: Option<WeightDtype>,
    device: Option<DeviceKind>,
    transport: Option<Transport>,
    #[serde(default, deserialize_with = "optional::<QUEUE_MAX, _>")]
    queue: Option<usize>,
    resident: Option<Residence>,
}

impl StageEntry {
    fn settings(&self) -> Settings {
        Settings {
            weights: self.weights,
            device: self.device,
            transport: self.transport,
            queue: self.queue,
            resident: self.resident,
        }
    }
}

/// A deployment file that could be read.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Where the board comes from.
    pub board: BoardSource,
    /// Path or name of the checkpoint.
    pub checkpoint: String,
    /// Batching limits.
    pub batching: Batching,
    /// Admission limits.
    pub admission: Admission,
    /// Deadlines.
    pub deadlines: Deadlines,
    name: String,
    text: String,
    request: RequestEntry,
    pipelines: Vec<(PipelineEntry, Vec<Vec<u32>>)>,
}

/// A placement and where in the file each of its slices was written.
#[derive(Debug, Clone, Default)]
pub struct Located {
    /// What runs where.
    pub placement: Placement,
    /// Byte ranges: for each pipeline, for each of its slices.
    pub spans: Vec<Vec<Range<usize>>>,
}

impl Deployment {
    /// Reads a deployment file.
    ///
    /// # Errors
    /// When the file cannot be read, or its text is wrong; the error names line and column.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        Ok(Self::parse(&path.display().to_string(), &read_text(path)?)?)
    }

    /// Reads a deployment from text.
    ///
    /// # Errors
    /// With line and column: what is no TOML, unknown keys and values, no board or several, stages that name chips
    /// their copies do not have.
    pub fn parse(name: &str, text: &str) -> Result<Self, Box<SourceError>> {
        let at = |span: Range<usize>, message: String| SourceError::new(name, text, span, message);
        let file: File = toml::from_str(text)
            .map_err(|error| at(error.span().unwrap_or(0..0), error.message().to_owned()))?;
        let board = board_source(&file, &at)?;
        if file.pipeline.is_empty() {
            return Err(at(0..0, "no [[pipeline]]".to_owned()));
        }
        let mut pipelines = Vec::new();
        for entry in file.pipeline {
            let span = entry.span();
            let entry = entry.into_inner();
            let copies = copies(&entry, span, &at)?;
            pipelines.push((entry, copies));
        }
        Ok(Self {
            board,
            checkpoint: file.checkpoint,
            batching: file.batching,
            admission: file.admission,
            deadlines: file.deadlines,
            name: name.to_owned(),
            text: text.to_owned(),
            request: file.request,
            pipelines,
        })
    }

    /// The file once more, as a type that holds what placement has no use for: the tables `[robot]` and `[server]`.
    ///
    /// # Errors
    /// When these tables are wrong; the error names line and column.
    pub fn tables<T: DeserializeOwned>(&self) -> Result<T, Box<SourceError>> {
        toml::from_str(&self.text)
            .map_err(|error| self.error_at(error.span().unwrap_or(0..0), error.message().to_owned()))
    }

    /// Name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The board, read from its descriptor when it has one; descriptor paths are relative to the deployment file.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn load_board(&self) -> Result<Board, ReadError> {
        match &self.board {
            BoardSource::Preset(preset) => Ok(preset.board()),
            BoardSource::Descriptor(path) => {
                let beside = Path::new(&self.name).parent().unwrap_or(Path::new(""));
                Ok(Descriptor::read(&beside.join(path))?.board())
            }
        }
    }

    /// What limits are checked for: the file's request on a policy, with full batches.
    pub fn request(&self, sizes: &ModelSizes) -> RequestShape {
        let of_policy = RequestShape::of(sizes);
        RequestShape {
            cameras: self.request.cameras.unwrap_or(of_policy.cameras),
            prompt_tokens: self.request.prompt_tokens.unwrap_or(of_policy.prompt_tokens),
            steps: self.request.steps.unwrap_or(of_policy.steps),
            batch: self.batching.max_requests.max(1),
        }
    }

    /// What runs where for a policy on an architecture: copies written out, defaults filled in.
    pub fn placement(&self, sizes: &ModelSizes, arch: Arch) -> Located {
        let mut located = Located::default();
        for (entry, copies) in &self.pipelines {
            for chips in copies {
                let mut slices: Vec<(Slice, Range<usize>)> = entry.slices(sizes, arch, chips);
                slices.sort_by_key(|(slice, _)| (slice.stage, slice.layers.start(), slice.layers.end()));
                let (slices, spans): (Vec<Slice>, Vec<Range<usize>>) = slices.into_iter().unzip();
                located.placement.pipelines.push(Pipeline { slices });
                located.spans.push(spans);
            }
        }
        located
    }

    /// Line and column of a byte range of the file.
    pub fn position(&self, span: &Range<usize>) -> (usize, usize) {
        line_column(&self.text, span.start)
    }

    /// An error at a byte range of the file.
    pub fn error_at(&self, span: Range<usize>, message: String) -> Box<SourceError> {
        SourceError::new(&self.name, &self.text, span, message)
    }
}

fn board_source(
    file: &File,
    at: &impl Fn(Range<usize>, String) -> Box<SourceError>,
) -> Result<BoardSource, Box<SourceError>> {
    let descriptors = [&file.cluster, &file.mesh_graph];
    let mut named: Vec<(Range<usize>, BoardSource)> = Vec::new();
    for path in descriptors.into_iter().flatten() {
        named.push((path.span(), BoardSource::Descriptor(path.get_ref().clone())));
    }
    if let Some(name) = &file.board {
        let preset = name.get_ref().parse::<Preset>().map_err(|error| {
            let boards = Preset::ALL.map(Preset::name).join(", ");
            at(name.span(), error.to_string()).with_help(format!("boards: {boards}"))
        })?;
        named.push((name.span(), BoardSource::Preset(preset)));
    }
    match &named[..] {
        [(_, source)] => Ok(source.clone()),
        [] => Err(at(0..0, "no board is named".to_owned()).with_help(
            "write board = \"p150a\", or cluster = \"cluster.yaml\", or mesh_graph = \"mesh.textproto\"",
        )),
        [_, (span, _), ..] => Err(at(span.clone(), "the board is named twice".to_owned())
            .with_help("keep one of board, cluster and mesh_graph")),
    }
}

fn copies(
    entry: &PipelineEntry,
    span: Range<usize>,
    at: &impl Fn(Range<usize>, String) -> Box<SourceError>,
) -> Result<Vec<Vec<u32>>, Box<SourceError>> {
    let mut named = Vec::new();
    for stage in &entry.stage {
        let chips = &stage.get_ref().chips;
        named.push((chips.span(), chips.get_ref().list().map_err(|message| at(chips.span(), message))?));
    }
    match (&entry.copies, &entry.chips) {
        (Some(copies), None) => {
            let lists = copies.get_ref().lists().map_err(|message| at(copies.span(), message))?;
            let shortest = lists.iter().map(Vec::len).min().unwrap_or(0) as u32;
            for (span, positions) in named {
                if let Some(position) = positions.iter().find(|position| **position >= shortest) {
                    return Err(at(span, format!("position {position} in copies of {shortest} chips"))
                        .with_help("with `copies`, the chips of a stage count from 0 within each copy"));
                }
            }
            Ok(lists)
        }
        (None, Some(chips)) if entry.stage.is_empty() => {
            Ok(vec![chips.get_ref().list().map_err(|message| at(chips.span(), message))?])
        }
        (None, None) if !entry.stage.is_empty() => Ok(vec![Vec::new()]),
        (None, None) => Err(at(span, "this pipeline has no chips".to_owned())
            .with_help("write chips = [0], or copies = \"0..4\", or one [[pipeline.stage]] for each part")),
        (_, Some(chips)) => Err(at(chips.span(), "`chips` stands beside `copies` or stages".to_owned())
            .with_help("`chips` is for a pipeline that runs the whole policy on one chip")),
    }
}

impl PipelineEntry {
    /// Slices of one copy, with where they were written. `copy` is empty when stages name chips of the board.
    fn slices(&self, sizes: &ModelSizes, arch: Arch, copy: &[u32]) -> Vec<(Slice, Range<usize>)> {
        let all = |stage| LayerRange::new(0, sizes.layers(stage).max(1)).expect("at least one layer");
        if self.stage.is_empty() {
            let chips: Vec<ChipId> = copy.iter().copied().map(ChipId).collect();
            let span = self
                .chips
                .as_ref()
                .map(Spanned::span)
                .or(self.copies.as_ref().map(Spanned::span))
                .unwrap_or(0..0);
            return StageKind::ALL
                .map(|stage| {
                    let slice =
                        self.slice(Settings::default(), stage, all(stage), chips.clone(), Split::Whole, arch);
                    (slice, span.clone())
                })
                .to_vec();
        }
        self.stage
            .iter()
            .map(|stage| {
                let entry = stage.get_ref();
                // Both were checked when the file was read.
                let named = entry.chips.get_ref().list().unwrap_or_default();
                let chip = |position: u32| copy.get(position as usize).copied().unwrap_or(position);
                let chips = named.into_iter().map(|position| ChipId(chip(position))).collect();
                let layers = entry.layers.unwrap_or_else(|| all(entry.kind));
                let split = entry.split.unwrap_or(Split::Whole);
                (self.slice(entry.settings(), entry.kind, layers, chips, split, arch), stage.span())
            })
            .collect()
    }

    fn slice(
        &self,
        own: Settings,
        stage: StageKind,
        layers: LayerRange,
        chips: Vec<ChipId>,
        split: Split,
        arch: Arch,
    ) -> Slice {
        let (device, weights) = match arch {
            Arch::Host => (DeviceKind::Host, WeightDtype::Bf16),
            Arch::Wormhole | Arch::Blackhole => (DeviceKind::Ttnn, WeightDtype::Bfp8B),
        };
        let device = own.device.or(self.device).unwrap_or(device);
        let weights = if device == DeviceKind::Host { WeightDtype::Bf16 } else { weights };
        Slice {
            stage,
            layers,
            chips,
            split,
            device,
            weights: own.weights.or(self.weights).unwrap_or(weights),
            residence: own.resident.or(self.resident).unwrap_or(Residence::Dram),
            transport: own.transport.or(self.transport).unwrap_or(Transport::Auto),
            queue: own.queue.or(self.queue).unwrap_or(QUEUE_MIN),
        }
    }
}
