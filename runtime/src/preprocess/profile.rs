//! Robot profiles: what a robot calls its cameras and state, and how its numbers differ from the model's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tensact_topology::Variant;

use super::aloha::PiSpace;

/// Profiles that come with the program.
const EMBEDDED: [(&str, &str); 4] = [
    ("libero", include_str!("profiles/libero.toml")),
    ("droid", include_str!("profiles/droid.toml")),
    ("aloha", include_str!("profiles/aloha.toml")),
    ("generic", include_str!("profiles/generic.toml")),
];

/// Ways to write a camera that belong to no name of it.
const CAMERA_PREFIXES: [&str; 3] = ["observation.images.", "observation/images/", "images/"];

/// A robot as the preprocessor sees it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What it is called.
    pub name: String,
    /// Where the instruction comes from.
    pub prompt: PromptSource,
    /// The model's cameras that the robot has; empty: the checkpoint's own, each optional.
    #[serde(default)]
    pub cameras: BTreeMap<String, CameraSource>,
    /// Camera keys that the robot may send and the model does not take.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// Parts of the state, which follow one another.
    pub state: Vec<StatePart>,
    /// The robot's actions.
    pub actions: Actions,
    /// Conversion to the robots of the base model, if this one differs.
    pub pi_space: Option<PiSpace>,
}

/// Where the instruction comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptSource {
    /// Keys it may stand under.
    pub keys: Vec<String>,
    /// The instruction of an observation without one.
    pub default: Option<String>,
}

/// Where a camera of the model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraSource {
    /// The robot's key.
    pub key: String,
    /// Whether an observation may lack it.
    #[serde(default)]
    pub optional: bool,
}

/// One part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatePart {
    /// Keys it may stand under.
    pub keys: Vec<String>,
    /// Its width; the statistics tell when it is left out.
    pub dims: Option<usize>,
}

/// The robot's actions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actions {
    /// Their width; the statistics tell when it is left out.
    pub dims: Option<usize>,
    /// Which actions the model gives relative to the state.
    #[serde(default)]
    pub delta: Delta,
}

/// Which actions the model gives relative to the state: runs of dimensions, as openpi's `make_bool_mask` takes
/// them. `[6, -1]` means six relative ones, then an absolute one. Dimensions after the last run are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// For π0 checkpoints.
    #[serde(default)]
    pub pi0: Vec<i16>,
    /// For π0.5 checkpoints.
    #[serde(default)]
    pub pi05: Vec<i16>,
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No profile of this name comes with the program.
    #[error("no profile `{name}`; there are {}, or give the path of a TOML file", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// Names there are.
        known: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read the profile {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No TOML, or another form; the message has line and column.
    #[error("profile {origin}: {source}")]
    Toml {
        /// File or name.
        origin: String,
        /// What is wrong, and where.
        source: Box<toml::de::Error>,
    },
    /// Values that do not fit each other.
    #[error("profile {origin}: {reason}")]
    Invalid {
        /// File or name.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

impl Profile {
    /// A profile that comes with the program: `libero`, `droid`, `aloha` or `generic`.
    ///
    /// # Errors
    /// When there is none of this name; the error lists those there are.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        match EMBEDDED.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::parse(text, name),
            None => Err(ProfileError::Unknown {
                name: name.into(),
                known: EMBEDDED.iter().map(|(known, _)| (*known).into()).collect(),
            }),
        }
    }

    /// A user's own profile, a TOML file like those in `preprocess/profiles/`.
    ///
    /// # Errors
    /// When it cannot be read or is no profile; the error has line and column.
    pub fn open(path: &Path) -> Result<Self, ProfileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ProfileError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a profile; `origin` is named in errors.
    ///
    /// # Errors
    /// When the text is no profile.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text)
            .map_err(|source| ProfileError::Toml { origin: origin.into(), source: Box::new(source) })?;
        match profile.fault() {
            Some(reason) => Err(ProfileError::Invalid { origin: origin.into(), reason }),
            None => Ok(profile),
        }
    }

    /// Width of the whole state, if the profile says it.
    pub fn state_dims(&self) -> Option<usize> {
        self.state.iter().try_fold(0usize, |sum, part| sum.checked_add(part.dims?))
    }

    /// Which actions are relative to the state.
    pub fn delta_mask(&self, variant: Variant) -> Vec<bool> {
        let runs = match variant {
            Variant::Pi0 => &self.actions.delta.pi0,
            Variant::Pi05 => &self.actions.delta.pi05,
        };
        runs.iter().flat_map(|&run| std::iter::repeat_n(run > 0, usize::from(run.unsigned_abs()))).collect()
    }

    /// What does not fit in a profile that has the right form.
    pub(super) fn fault(&self) -> Option<String> {
        if self.state.is_empty() || self.state.iter().any(|part| part.keys.is_empty()) {
            return Some("`state` needs at least one part, and every part at least one key".into());
        }
        if self.state.len() > 1 && self.state_dims().is_none() {
            return Some("`state` of several parts needs `dims` for each".into());
        }
        if self.actions.dims == Some(0) || self.state.iter().any(|part| part.dims == Some(0)) {
            return Some("`dims` must be at least 1".into());
        }
        if self.prompt.keys.is_empty() {
            return Some("`prompt.keys` is empty".into());
        }
        for variant in [Variant::Pi0, Variant::Pi05] {
            let mask = self.delta_mask(variant).len();
            let room = self.actions.dims.unwrap_or(mask).min(self.state_dims().unwrap_or(mask));
            if mask > room {
                return Some(format!(
                    "`actions.delta.{variant}` covers {mask} dimensions, more than state or actions have"
                ));
            }
        }
        let space = self.pi_space.as_ref()?;
        let dims = Some(space.flip.len());
        if self.state_dims() != dims || self.actions.dims != dims {
            return Some(
                "`pi_space.flip` must be as long as `state` and `actions.dims`, which must be given".into(),
            );
        }
        if space.flip.iter().any(|flip| flip.abs() != 1.0) {
            return Some("`pi_space.flip` must hold 1 and -1 only".into());
        }
        let outside = space.grippers.iter().find(|&&gripper| gripper >= space.flip.len())?;
        Some(format!("`pi_space.grippers` names dimension {outside}, but there are {}", space.flip.len()))
    }
}

/// A camera's name without the ways to write it: `observation.images.top` and `images/top` are `top`.
pub fn short_camera(name: &str) -> &str {
    CAMERA_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// The short name of one of openpi's cameras, such as `left_wrist` of `left_wrist_0_rgb`.
pub fn camera_alias(camera: &str) -> &str {
    let short = short_camera(camera);
    short.strip_suffix("_0_rgb").unwrap_or(short)
}
