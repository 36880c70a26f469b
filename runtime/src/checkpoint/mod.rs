//! A policy's weights on disk: found, mapped, named, measured and checked before anything is loaded.

mod error;
pub mod hub;
pub mod names;
mod sizes;
pub mod synth;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use tensact_topology::{ModelSizes, StageKind, Variant};

pub use error::{CheckpointError, Finding};

use crate::config::PolicyConfig;
use crate::tensor_file::{StoredTensor, TensorFile, TensorFileError};
use names::{Naming, Part, tensor_specs};

/// A checked checkpoint: every tensor that its policy needs is there, has the right shape and a float type. A clone
/// shares the mapped files.
#[derive(Clone)]
pub struct Checkpoint {
    path: PathBuf,
    config: PolicyConfig,
    sizes: ModelSizes,
    naming: Naming,
    tensors: BTreeMap<String, StoredTensor>,
}

/// What a stage's weights amount to in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PartTotals {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes in the file.
    pub bytes: usize,
    /// Parameters by element type.
    pub dtypes: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a checkpoint: a folder with `model.safetensors` (or shards and their index) and `config.json`, or a
    /// safetensors file with `config.json` beside it.
    ///
    /// # Errors
    /// When files are missing or corrupt, or tensors are missing, unexpected, misshapen or of a wrong type: all
    /// findings at once.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (folder, files) = weight_files(path)?;
        let config = PolicyConfig::read(&folder)?;
        let mapped = open_all(&files)?;
        let (naming, tensors, mut findings) = canonical_tensors(&mapped);
        let sizes = sizes::measure(&config, &tensors, &mut findings);
        if let Some(sizes) = &sizes {
            check(sizes, &tensors, &mut findings);
        }
        match sizes {
            Some(sizes) if findings.is_empty() => {
                Ok(Self { path: path.into(), config, sizes, naming, tensors })
            }
            sizes => {
                Err(CheckpointError::Contents { path: path.into(), sizes: sizes.map(Box::new), findings })
            }
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds tokenizer and statistics, too.
    pub fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { parent(&self.path) }
    }

    /// What the files beside the weights say.
    pub fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// The policy's sizes, from tensors and configuration.
    pub fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    /// Whose names the file uses.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// A tensor by openpi's name.
    ///
    /// # Panics
    /// When the policy has no such tensor; those that [`tensor_specs`] lists as used are always there.
    pub fn tensor(&self, name: &str) -> &StoredTensor {
        match self.tensors.get(name) {
            Some(tensor) => tensor,
            None => unreachable!("tensor `{name}` is not among those checked on opening"),
        }
    }

    /// A tensor by openpi's name, if the policy has it.
    pub(crate) fn find(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// Tensors that are in the file and never read, such as the expert's output head.
    pub fn unused(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        let used: BTreeSet<String> = used_specs(&self.sizes).map(|(name, ..)| name).collect();
        self.tensors.iter().filter(move |(name, _)| !used.contains(*name)).map(|(name, t)| (name.as_str(), t))
    }

    /// Tensors, parameters and bytes of a stage.
    pub fn totals(&self, stage: StageKind) -> PartTotals {
        let mut totals = PartTotals::default();
        for (name, _, _) in used_specs(&self.sizes).filter(|(_, _, part)| *part == stage) {
            totals.add(self.tensor(&name));
        }
        totals
    }

    /// Tensors, parameters and bytes that are never read.
    pub fn unused_totals(&self) -> PartTotals {
        let mut totals = PartTotals::default();
        self.unused().for_each(|(_, tensor)| totals.add(tensor));
        totals
    }
}

impl PartTotals {
    /// Adds another part's totals.
    pub fn merge(&mut self, other: &Self) {
        self.tensors += other.tensors;
        self.parameters += other.parameters;
        self.bytes += other.bytes;
        for (dtype, parameters) in &other.dtypes {
            *self.dtypes.entry(dtype.clone()).or_default() += parameters;
        }
    }

    fn add(&mut self, tensor: &StoredTensor) {
        self.tensors += 1;
        self.parameters += tensor.elements();
        self.bytes += tensor.bytes().len();
        *self.dtypes.entry(format!("{:?}", tensor.dtype()).to_lowercase()).or_default() += tensor.elements();
    }
}

/// Name, shape and stage of every tensor that a policy of these sizes reads.
fn used_specs(sizes: &ModelSizes) -> impl Iterator<Item = (String, Vec<usize>, StageKind)> {
    tensor_specs(sizes).into_iter().filter_map(|spec| match spec.part {
        Part::Stage(stage) => Some((spec.name, spec.shape, stage)),
        Part::Unused => None,
    })
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The folder of a checkpoint and the files that hold its weights.
fn weight_files(path: &Path) -> Result<(PathBuf, Vec<PathBuf>), CheckpointError> {
    if path.is_file() {
        return Ok((parent(path).into(), vec![path.into()]));
    }
    let single = path.join("model.safetensors");
    if single.is_file() {
        return Ok((path.into(), vec![single]));
    }
    let index_path = path.join("model.safetensors.index.json");
    if !index_path.is_file() {
        return Err(CheckpointError::NotFound { path: path.into() });
    }
    let shards = shards(&index_path)?;
    if let Some(shard) = shards.iter().find(|shard| !stays_inside(shard)) {
        let problem = format!("it names the file {shard:?}, which is not in its folder");
        return Err(TensorFileError::Corrupt { path: index_path, problem }.into());
    }
    Ok((path.into(), shards.into_iter().map(|shard| path.join(shard)).collect()))
}

/// The names of shards in an index, as it spells them: whoever follows them says first which names it trusts.
pub(crate) fn shards(index_path: &Path) -> Result<BTreeSet<String>, TensorFileError> {
    let text = std::fs::read(index_path)
        .map_err(|source| TensorFileError::Open { path: index_path.into(), source })?;
    let index: ShardIndex = serde_json::from_slice(&text)
        .map_err(|error| TensorFileError::Corrupt { path: index_path.into(), problem: error.to_string() })?;
    Ok(index.weight_map.into_values().collect())
}

/// Opens every file, or says what is wrong with each that cannot be opened.
fn open_all(files: &[PathBuf]) -> Result<Vec<TensorFile>, CheckpointError> {
    let (mut opened, mut errors) = (Vec::new(), Vec::new());
    for file in files {
        TensorFile::open(file).map_or_else(|error| errors.push(error), |file| opened.push(file));
    }
    if errors.is_empty() { Ok(opened) } else { Err(CheckpointError::Files(errors)) }
}

/// Whether a file name out of another file names something in the same folder.
pub(crate) fn stays_inside(file: &str) -> bool {
    Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// All tensors under openpi's names.
fn canonical_tensors(files: &[TensorFile]) -> (Naming, BTreeMap<String, StoredTensor>, Vec<Finding>) {
    let names = || files.iter().flat_map(|file| file.tensors().keys().map(String::as_str));
    let naming = Naming::of(names());
    // Only π0 projects the state, so a file with `state_proj` means π0's MLP when it says `time_mlp`.
    let hint = names().any(|name| name.ends_with("state_proj.weight")).then_some(Variant::Pi0);
    let mut tensors: BTreeMap<String, StoredTensor> = BTreeMap::new();
    let mut findings = Vec::new();
    for file in files {
        for (raw, tensor) in file.tensors() {
            let name = names::canonical(raw, hint);
            match tensors.get(&name) {
                // The tied table may stand in a file twice; untied, the embedding is the one that peers read.
                Some(first) if name == names::TOKEN_TABLE && first.shape() == tensor.shape() => {
                    if names::is_embedding(raw) {
                        tensors.insert(name, tensor.clone());
                    }
                }
                Some(_) => findings.push(Finding::Duplicate { name, file: file.path().into() }),
                None => {
                    tensors.insert(name, tensor.clone());
                }
            }
        }
    }
    (naming, tensors, findings)
}

/// Holds every tensor against what a policy of these sizes needs.
fn check(sizes: &ModelSizes, tensors: &BTreeMap<String, StoredTensor>, findings: &mut Vec<Finding>) {
    let mut expected = BTreeSet::new();
    for (name, shape, _) in used_specs(sizes) {
        match tensors.get(&name) {
            None => findings.push(Finding::Missing { name: name.clone(), shape }),
            Some(tensor) => {
                if tensor.shape() != shape {
                    let found = tensor.shape().to_vec();
                    findings.push(Finding::Misshapen { name: name.clone(), found, expected: shape });
                }
                if !tensor.is_float() {
                    findings.push(Finding::WrongDtype { name: name.clone(), found: tensor.dtype() });
                }
            }
        }
        expected.insert(name);
    }
    for name in tensors.keys().filter(|name| !expected.contains(*name) && !names::is_never_read(name)) {
        findings.push(Finding::Unexpected { name: name.clone() });
    }
}
