//! The statistics a checkpoint was trained with: openpi's `norm_stats.json`, LeRobot's processor files, or the
//! buffers of older LeRobot checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tensact_topology::Variant;

use super::lerobot;
use super::normalize::{Convention, Scaling, ScalingError};

/// Deepest folder below `assets/` that is searched; openpi's ids look like `physical-intelligence/libero`.
const ASSET_DEPTH: usize = 4;

/// Scales of state and actions, and where they are from.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Scale of the robot state.
    pub state: Scaling,
    /// Scale of the actions.
    pub actions: Scaling,
    /// LeRobot's relative actions, when the checkpoint was trained with them; goes before the profile's.
    pub relative: Option<RelativeActions>,
    /// Where they are from.
    pub source: Source,
}

/// Where statistics are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// openpi's file.
    OpenPi(PathBuf),
    /// LeRobot's preprocessor file; the postprocessor's stands beside it.
    LeRobot(PathBuf),
    /// Buffers among the weights, as LeRobot up to 0.3 saved them.
    Buffers,
    /// There are none: values pass unchanged, which suits only a checkpoint that was trained that way.
    Nowhere,
}

/// Which actions LeRobot's model gives relative to the state (`relative_action_processor.py`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelativeActions {
    /// Parts of the names of joints that stay absolute.
    pub exclude: Vec<String>,
    /// Names of the action dimensions, if they are known.
    pub names: Option<Vec<String>>,
}

/// Statistics that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has another form than its name says.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint has statistics of several robots.
    #[error("{} holds statistics of several robots: {}; choose one of them", folder.display(), ids.join(", "))]
    Several {
        /// Where they are.
        folder: PathBuf,
        /// Their ids.
        ids: Vec<String>,
    },
    /// The chosen robot has no statistics.
    #[error("{} holds no statistics named `{id}`, only: {}", folder.display(), ids.join(", "))]
    Unknown {
        /// Where they were looked for.
        folder: PathBuf,
        /// The chosen id.
        id: String,
        /// The ids there are.
        ids: Vec<String>,
    },
    /// A list is missing.
    #[error("{origin} has no `{name}` for {feature}, which {mode} normalisation needs")]
    Missing {
        /// File or place.
        origin: String,
        /// State or actions.
        feature: String,
        /// The list.
        name: String,
        /// Kind of normalisation.
        mode: String,
    },
    /// The numbers give no scale.
    #[error("{origin}, statistics of {feature}: {source}")]
    Scaling {
        /// File or place.
        origin: String,
        /// State or actions.
        feature: String,
        /// What is wrong.
        source: ScalingError,
    },
}

/// Kind of normalisation, by LeRobot's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Mean and standard deviation.
    MeanStd,
    /// 1st and 99th percentile.
    Quantiles,
    /// 10th and 90th percentile.
    Quantile10,
    /// Minimum and maximum.
    MinMax,
    /// None.
    Identity,
}

impl Mode {
    /// What openpi and LeRobot train this policy with, unless told otherwise.
    pub fn of(variant: Variant) -> Self {
        match variant {
            Variant::Pi0 => Self::MeanStd,
            Variant::Pi05 => Self::Quantiles,
        }
    }

    fn lists(self) -> Option<[&'static str; 2]> {
        match self {
            Self::MeanStd => Some(["mean", "std"]),
            Self::Quantiles => Some(["q01", "q99"]),
            Self::Quantile10 => Some(["q10", "q90"]),
            Self::MinMax => Some(["min", "max"]),
            Self::Identity => None,
        }
    }

    /// The scale that named lists give.
    pub(super) fn scaling(
        self,
        lists: &BTreeMap<String, Vec<f64>>,
        convention: Convention,
        origin: &str,
        feature: &str,
    ) -> Result<Scaling, StatisticsError> {
        let Some(names) = self.lists() else { return Ok(Scaling::identity()) };
        let [first, second] = names.map(|name| {
            lists.get(name).ok_or_else(|| StatisticsError::Missing {
                origin: origin.into(),
                feature: feature.into(),
                name: name.into(),
                mode: format!("{self:?}"),
            })
        });
        let scaling = match self {
            Self::MeanStd => Scaling::mean_std(first?, second?, convention),
            _ => Scaling::range(first?, second?, convention),
        };
        scaling.map_err(|source| StatisticsError::Scaling {
            origin: origin.into(),
            feature: feature.into(),
            source,
        })
    }
}

impl RelativeActions {
    /// Which of `dims` actions are relative: all whose name holds none of the excluded parts.
    pub fn mask(&self, dims: usize) -> Vec<bool> {
        let name = |dim: usize| self.names.as_ref().and_then(|names| names.get(dim));
        let excluded = |name: &String| {
            let mut parts = self.exclude.iter().filter(|part| !part.is_empty());
            parts.any(|part| name.to_lowercase().contains(&part.to_lowercase()))
        };
        (0..dims).map(|dim| !name(dim).is_some_and(excluded)).collect()
    }
}

impl Statistics {
    /// No statistics: values pass unchanged.
    pub fn identity() -> Self {
        Self {
            state: Scaling::identity(),
            actions: Scaling::identity(),
            relative: None,
            source: Source::Nowhere,
        }
    }

    /// Finds the statistics in a checkpoint folder: LeRobot's `policy_preprocessor.json`, else
    /// `assets/<id>/norm_stats.json`, else none ([`Source::Nowhere`], which deserves a warning).
    ///
    /// `asset` chooses among several ids, which may contain slashes.
    ///
    /// # Errors
    /// When files are damaged, do not fit each other, or there are several and none is chosen.
    pub fn open(folder: &Path, variant: Variant, asset: Option<&str>) -> Result<Self, StatisticsError> {
        let preprocessor = folder.join(lerobot::PREPROCESSOR);
        if asset.is_none() && preprocessor.is_file() {
            return lerobot::open(folder);
        }
        let assets = folder.join("assets");
        let mut found = BTreeMap::new();
        find_assets(&assets, "", ASSET_DEPTH, &mut found);
        let ids: Vec<String> = found.keys().cloned().collect();
        let chosen = match (asset, ids.as_slice()) {
            (Some(id), _) => id.to_owned(),
            (None, []) => return Ok(Self::identity()),
            (None, [id]) => id.clone(),
            (None, _) => return Err(StatisticsError::Several { folder: assets, ids }),
        };
        match found.get(&chosen) {
            Some(path) => Self::from_norm_stats(path, variant),
            None => Err(StatisticsError::Unknown { folder: assets, id: chosen, ids }),
        }
    }

    /// Reads openpi's `norm_stats.json`: z-score for π0, quantiles for π0.5.
    ///
    /// # Errors
    /// When the file cannot be read, has another form, or gives no scale.
    pub fn from_norm_stats(path: &Path, variant: Variant) -> Result<Self, StatisticsError> {
        #[derive(Deserialize)]
        struct File {
            norm_stats: BTreeMap<String, BTreeMap<String, Option<Vec<f64>>>>,
        }
        let mut file: File = read_json(path)?;
        let origin = path.display().to_string();
        let mut scaling = |feature: &str| {
            let lists = file.norm_stats.remove(feature).ok_or_else(|| StatisticsError::Format {
                path: path.to_owned(),
                reason: format!("no `{feature}` under `norm_stats`"),
            })?;
            let lists = lists.into_iter().filter_map(|(name, list)| Some((name, list?))).collect();
            Mode::of(variant).scaling(&lists, Convention::OpenPi, &origin, feature)
        };
        Ok(Self {
            state: scaling("state")?,
            actions: scaling("actions")?,
            relative: None,
            source: Source::OpenPi(path.to_owned()),
        })
    }

    /// Reads the normalisation buffers that LeRobot up to 0.3 saved among the weights, such as
    /// `normalize_inputs.buffer_observation_state.mean`; `None` when there are none.
    ///
    /// # Errors
    /// When the buffers give no scale.
    pub fn from_named(tensors: &BTreeMap<String, Vec<f32>>) -> Result<Option<Self>, StatisticsError> {
        lerobot::buffers(tensors)
    }
}

/// Whether a tensor of this name is a normalisation buffer and no weight.
pub fn is_buffer(name: &str) -> bool {
    ["normalize_inputs.", "normalize_targets.", "unnormalize_outputs."]
        .iter()
        .any(|part| name.starts_with(part))
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StatisticsError> {
    let text =
        std::fs::read(path).map_err(|source| StatisticsError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|error| StatisticsError::Format { path: path.to_owned(), reason: error.to_string() })
}

/// Collects `norm_stats.json` files below `folder` by the id that their folder spells.
fn find_assets(folder: &Path, id: &str, depth: usize, found: &mut BTreeMap<String, PathBuf>) {
    let file = folder.join("norm_stats.json");
    if file.is_file() {
        found.insert(id.to_owned(), file);
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| depth > 0 && path.is_dir()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let id = if id.is_empty() { name } else { format!("{id}/{name}") };
        find_assets(&path, &id, depth - 1, found);
    }
}
