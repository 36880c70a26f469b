//! From a robot's observation to the model's input, and from the model's actions to the robot's.
//!
//! The order is openpi's (`policies/policy_config.py`): robot to model names and units, relative actions,
//! normalisation, resizing and tokens, padding; and the same backwards.

mod aloha;
mod cameras;
mod lerobot;
mod problem;
mod sentencepiece;

pub mod image;
pub mod normalize;
pub mod profile;
pub mod prompt;
pub mod statistics;
pub mod synthetic;
pub mod tokenizer;

use std::collections::BTreeMap;

use tensact_topology::ModelSizes;

pub use aloha::PiSpace;
pub use cameras::UnknownCamera;
pub use problem::{ActionsError, ObservationError, Problem, Warning};
pub use profile::Profile;
pub use statistics::Statistics;
pub use tokenizer::Tokenizer;

use crate::Tensor;
use crate::model::ModelInput;
use crate::observation::{Image, Observation};
use cameras::Cameras;
use statistics::Source;

/// Values of a state that are named when they are no numbers; a state may be as long as its sender likes.
const VALUES_NAMED: usize = 16;

/// Prepares the observations of one robot for one checkpoint, and its actions for the robot.
#[derive(Debug)]
pub struct Preprocessor {
    sizes: ModelSizes,
    profile: Profile,
    tokenizer: Tokenizer,
    statistics: Statistics,
    cameras: Cameras,
    /// Which actions are relative to the state.
    delta: Vec<bool>,
    action_dims: usize,
}

/// An observation that is ready for the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What the model takes.
    pub input: ModelInput,
    /// What the robot's operator should know.
    pub warnings: Vec<Warning>,
}

/// Profile, checkpoint and statistics that do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessorError {
    /// The checkpoint has another camera.
    #[error(
        "profile `{profile}` feeds camera `{camera}`, but the checkpoint's cameras are {}; \
         use profile `generic` or a profile of your own", known.join(", ")
    )]
    Camera {
        /// The profile.
        profile: String,
        /// Its camera.
        camera: String,
        /// The checkpoint's cameras.
        known: Vec<String>,
    },
    /// The profile contradicts itself.
    #[error("profile `{profile}`: {reason}")]
    Profile {
        /// The profile.
        profile: String,
        /// What is wrong.
        reason: String,
    },
    /// The robot is wider than the model or its statistics.
    #[error("profile `{profile}` has {dims} {what} dimensions, but {limit_of} only {limit}")]
    Width {
        /// The profile.
        profile: String,
        /// State or action.
        what: &'static str,
        /// The robot's width.
        dims: usize,
        /// What is narrower.
        limit_of: &'static str,
        /// Its width.
        limit: usize,
    },
}

impl Preprocessor {
    /// Puts a checkpoint (`sizes`, its `cameras` in order, its `tokenizer` and `statistics`) and a robot together.
    ///
    /// # Errors
    /// When the robot has cameras that the checkpoint lacks, or more dimensions than the model or the statistics.
    pub fn new(
        sizes: ModelSizes,
        cameras: Vec<String>,
        profile: Profile,
        tokenizer: Tokenizer,
        statistics: Statistics,
    ) -> Result<Self, PreprocessorError> {
        if let Some(reason) = profile.fault() {
            return Err(PreprocessorError::Profile { profile: profile.name, reason });
        }
        let cameras = Cameras::new(&profile, cameras)?;
        let check = |what, dims, limit_of, limit| match dims > limit {
            true => {
                Err(PreprocessorError::Width { profile: profile.name.clone(), what, dims, limit_of, limit })
            }
            false => Ok(()),
        };
        let scaled = |dims: usize| if dims == 0 { usize::MAX } else { dims };
        let state_dims = profile.state_dims().unwrap_or(0);
        check("state", state_dims, "the model has", sizes.state_dim)?;
        check("state", state_dims, "its statistics have", scaled(statistics.state.dims()))?;
        if matches!(statistics.source, Source::LeRobot(_) | Source::Buffers) {
            // These are exactly as wide as the robot; openpi's may be padded.
            check("state", statistics.state.dims(), "the model has", sizes.state_dim)?;
        }
        let known = scaled(statistics.actions.dims()).min(sizes.action_dim);
        let action_dims = profile.actions.dims.unwrap_or(known);
        check("action", action_dims, "the model has", sizes.action_dim)?;
        check("action", action_dims, "its statistics have", scaled(statistics.actions.dims()))?;
        let mut delta = match &statistics.relative {
            Some(relative) => relative.mask(action_dims),
            None => profile.delta_mask(sizes.variant),
        };
        delta.truncate(delta.iter().rposition(|relative| *relative).map_or(0, |last| last + 1));
        if let Some(dims) = profile.state_dims() {
            check("relative action", delta.len(), "its state has", dims)?;
        }
        if profile.state_dims().is_none() {
            let most = scaled(statistics.state.dims()).min(sizes.state_dim);
            check("relative action", delta.len(), "its state has", most)?;
        }
        Ok(Self { sizes, profile, tokenizer, statistics, cameras, delta, action_dims })
    }

    /// Width of the robot's actions.
    pub fn action_dims(&self) -> usize {
        self.action_dims
    }

    /// The robot that observations are of.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The checkpoint's camera that an image of this name is for; short names such as `base` count.
    ///
    /// # Errors
    /// When the profile has no such camera; the error lists those it has.
    pub fn camera(&self, name: &str) -> Result<&str, UnknownCamera> {
        self.cameras.named(name)
    }

    /// The robot's cameras that the policy sees: the robot's key of each and the checkpoint's name for it.
    pub fn cameras(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cameras.fed()
    }

    /// Whether the robot may send an image of this name that the policy does not see.
    pub fn ignores(&self, name: &str) -> bool {
        self.cameras.ignores(name)
    }

    /// Puts the state together from its parts, which `part` finds by their keys.
    ///
    /// # Errors
    /// Names every part that is missing or has the wrong width.
    pub fn join_state(
        &self,
        mut part: impl FnMut(&str) -> Option<Vec<f32>>,
    ) -> Result<Vec<f32>, ObservationError> {
        let mut state = Vec::new();
        let mut problems = Vec::new();
        for source in &self.profile.state {
            match source.keys.iter().find_map(|key| Some((key, part(key)?))) {
                None => problems.push(Problem::StateMissing { keys: source.keys.clone() }),
                Some((key, values)) => match source.dims.filter(|&dims| dims != values.len()) {
                    Some(dims) => problems.push(Problem::StateDims {
                        key: key.clone(),
                        expected: dims.to_string(),
                        got: values.len(),
                    }),
                    None => state.extend(values),
                },
            }
        }
        if problems.is_empty() { Ok(state) } else { Err(ObservationError { problems }) }
    }

    /// Makes an observation ready for the model. Images that no camera takes are left out with a warning.
    ///
    /// # Errors
    /// Names everything that is wrong with the observation at once.
    pub fn prepare(&self, observation: &Observation) -> Result<Prepared, ObservationError> {
        let mut problems = self.state_problems(&observation.state);
        let mut warnings = Vec::new();
        let images = self.images(&observation.images, &mut problems, &mut warnings);
        let text = observation.prompt.as_ref().or(self.profile.prompt.default.as_ref());
        if text.is_none() {
            problems.push(Problem::PromptMissing { keys: self.profile.prompt.keys.clone() });
        }
        let (true, Some(text)) = (problems.is_empty(), text) else {
            return Err(ObservationError { problems });
        };
        let state = self.statistics.state.normalise(&self.model_state(&observation.state));
        let limit = self.sizes.prompt_tokens;
        let prompt = prompt::encode(self.sizes.variant, &self.tokenizer, text, &state, limit)
            .map_err(|error| ObservationError { problems: vec![error.into()] })?;
        warnings.extend(prompt.cut_from.map(|tokens| Warning::PromptCut { tokens, limit }));
        let mut state: Vec<f32> = state.iter().map(|&value| value as f32).collect();
        state.resize(self.sizes.state_dim, 0.0);
        Ok(Prepared { input: ModelInput { images, tokens: prompt.tokens, state }, warnings })
    }

    /// A chunk of the model, `[any, action_dim]`, as the robot takes it: `[any, action_dims]` in its units.
    /// `state` is the raw state of the observation that the chunk answers.
    ///
    /// # Errors
    /// When chunk or state has another width than this model and robot.
    pub fn robot_actions(&self, chunk: &Tensor, state: &[f32]) -> Result<Tensor, ActionsError> {
        let base = self.delta_base(state)?;
        self.each_action(chunk, self.sizes.action_dim, self.action_dims, |action| {
            let mut action = self.statistics.actions.restore(&action[..self.action_dims]);
            action.iter_mut().zip(&base).for_each(|(value, base)| *value += base);
            if let Some(space) = &self.profile.pi_space {
                space.action_out(&mut action);
            }
            action
        })
    }

    /// The robot's actions, `[any, action_dims]`, as the model gives them: `[any, action_dim]`, padded with zeros.
    /// The inverse of [`Preprocessor::robot_actions`], for real-time chunking.
    ///
    /// # Errors
    /// When actions or state have another width than this robot.
    pub fn normalise_actions(&self, actions: &Tensor, state: &[f32]) -> Result<Tensor, ActionsError> {
        let base = self.delta_base(state)?;
        let (rows, horizon) = (actions.rows(), self.sizes.horizon);
        if rows > horizon {
            return Err(ActionsError::TooMany { rows, horizon });
        }
        if let Some(at) = actions.data().iter().position(|value| !value.is_finite()) {
            let (row, dim) = (at / actions.width(), at % actions.width());
            return Err(ActionsError::NotFinite { row, dim, value: actions.data()[at] });
        }
        self.each_action(actions, self.action_dims, self.sizes.action_dim, |action| {
            let mut action = action.to_vec();
            if let Some(space) = &self.profile.pi_space {
                space.action_in(&mut action);
            }
            action.iter_mut().zip(&base).for_each(|(value, base)| *value -= base);
            let mut action = self.statistics.actions.normalise(&action);
            action.resize(self.sizes.action_dim, 0.0);
            action
        })
    }

    fn each_action(
        &self,
        actions: &Tensor,
        from: usize,
        to: usize,
        convert: impl Fn(&[f64]) -> Vec<f64>,
    ) -> Result<Tensor, ActionsError> {
        let &[rows, width] = actions.shape() else {
            return Err(ActionsError::Shape { got: actions.shape().into(), width: from });
        };
        if width != from {
            return Err(ActionsError::Shape { got: actions.shape().into(), width: from });
        }
        let mut converted = Tensor::zeros([rows, to]);
        for (row, target) in converted.data_mut().chunks_exact_mut(to.max(1)).enumerate() {
            let action: Vec<f64> = actions.row(row).iter().copied().map(f64::from).collect();
            target.iter_mut().zip(convert(&action)).for_each(|(target, value)| *target = value as f32);
        }
        Ok(converted)
    }

    /// The raw state in the units of the base model's robots.
    fn model_state(&self, state: &[f32]) -> Vec<f64> {
        let mut state: Vec<f64> = state.iter().copied().map(f64::from).collect();
        if let Some(space) = &self.profile.pi_space {
            space.state_in(&mut state);
        }
        state
    }

    /// What relative actions are relative to; 0 for absolute ones.
    fn delta_base(&self, state: &[f32]) -> Result<Vec<f64>, ObservationError> {
        let problems = self.state_problems(state);
        if !problems.is_empty() {
            return Err(ObservationError { problems });
        }
        let state = self.model_state(state);
        Ok(self.delta.iter().zip(state).map(|(&delta, value)| if delta { value } else { 0.0 }).collect())
    }

    fn state_problems(&self, state: &[f32]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let (least, most) = self.state_bounds();
        if !(least..=most).contains(&state.len()) {
            let keys: Vec<&str> = self.profile.state.iter().map(|part| part.keys[0].as_str()).collect();
            let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
            problems.push(Problem::StateDims { key: keys.join("` ++ `"), expected, got: state.len() });
        }
        let wrong = state.iter().enumerate().filter(|(_, value)| !value.is_finite());
        for (dim, &value) in wrong.take(VALUES_NAMED) {
            problems.push(Problem::StateNotFinite { key: self.state_key(dim), dim, value });
        }
        problems
    }

    /// Least and most values a state may have.
    pub fn state_bounds(&self) -> (usize, usize) {
        let scaled = self.statistics.state.dims();
        match (self.profile.state_dims(), &self.statistics.source) {
            (Some(dims), _) => (dims, dims),
            // openpi's statistics may be padded, LeRobot's are exactly as wide as the robot.
            (None, Source::LeRobot(_) | Source::Buffers) if scaled > 0 => (scaled, scaled),
            (None, _) if scaled > 0 => (self.delta.len().max(1), scaled.min(self.sizes.state_dim)),
            (None, _) => (self.delta.len().max(1), self.sizes.state_dim),
        }
    }

    /// The key of the state part that a value belongs to.
    fn state_key(&self, dim: usize) -> String {
        let mut end = 0;
        let mut parts = self.profile.state.iter();
        let part = parts.find(|part| {
            end += part.dims.unwrap_or(usize::MAX - end);
            dim < end
        });
        part.or(self.profile.state.last()).map_or_else(String::new, |part| part.keys[0].clone())
    }

    fn images(
        &self,
        images: &BTreeMap<String, Image>,
        problems: &mut Vec<Problem>,
        warnings: &mut Vec<Warning>,
    ) -> Vec<Option<Tensor>> {
        let chosen = self.cameras.choose(images, problems, warnings);
        let mut resize = |(key, image): (&String, &Image)| {
            image::resize_with_pad(image, self.sizes.vision.image)
                .map_err(|error| {
                    problems.push(Problem::Resize { key: key.clone(), reason: error.to_string() })
                })
                .ok()
        };
        chosen.into_iter().map(|chosen| chosen.and_then(&mut resize)).collect()
    }
}
