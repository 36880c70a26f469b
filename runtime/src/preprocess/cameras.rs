//! Which image of an observation is which camera of the checkpoint.

use std::collections::BTreeMap;

use super::PreprocessorError;
use super::problem::{Problem, Warning};
use super::profile::{Profile, camera_alias, short_camera};
use crate::observation::Image;

/// The checkpoint's cameras, in its order.
#[derive(Debug)]
pub(super) struct Cameras {
    cameras: Vec<Camera>,
    ignored: Vec<String>,
}

#[derive(Debug)]
struct Camera {
    name: String,
    /// Where the robot has it; `None` if it does not.
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    key: String,
    optional: bool,
}

/// An image name that no camera of the profile has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no camera `{name}`; there are {}", known.join(", "))]
pub struct UnknownCamera {
    /// The name.
    pub name: String,
    /// The names there are.
    pub known: Vec<String>,
}

impl Cameras {
    pub(super) fn new(profile: &Profile, names: Vec<String>) -> Result<Self, PreprocessorError> {
        let has = |camera: &str| names.iter().any(|name| short_camera(name) == short_camera(camera));
        if let Some(camera) = profile.cameras.keys().find(|camera| !has(camera)) {
            return Err(PreprocessorError::Camera {
                profile: profile.name.clone(),
                camera: camera.clone(),
                known: names,
            });
        }
        let source = |name: &str| {
            if profile.cameras.is_empty() {
                return Some(Source { key: name.into(), optional: true });
            }
            let mut fed = profile.cameras.iter();
            let (_, source) = fed.find(|(camera, _)| short_camera(camera) == short_camera(name))?;
            Some(Source { key: source.key.clone(), optional: source.optional })
        };
        let cameras = names.into_iter().map(|name| Camera { source: source(&name), name }).collect();
        Ok(Self { cameras, ignored: profile.ignored.clone() })
    }

    pub(super) fn named(&self, name: &str) -> Result<&str, UnknownCamera> {
        match self.position(name) {
            Some(position) => Ok(&self.cameras[position].name),
            None => {
                let fed = self.cameras.iter().filter(|camera| camera.source.is_some());
                let known = fed.map(|camera| camera_alias(&camera.name).into()).collect();
                Err(UnknownCamera { name: name.into(), known })
            }
        }
    }

    /// Key and name of every camera that the robot has.
    pub(super) fn fed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cameras
            .iter()
            .filter_map(|camera| Some((camera.source.as_ref()?.key.as_str(), camera.name.as_str())))
    }

    pub(super) fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|known| short_camera(known) == short_camera(name))
    }

    /// The camera of an image: the robot's key, else the model's name, else its short name.
    fn position(&self, name: &str) -> Option<usize> {
        let short = short_camera(name);
        let find = |matches: &dyn Fn(&Camera, &Source) -> bool| {
            self.cameras
                .iter()
                .position(|camera| camera.source.as_ref().is_some_and(|source| matches(camera, source)))
        };
        find(&|_, source| source.key == name)
            .or_else(|| find(&|_, source| short_camera(&source.key) == short))
            .or_else(|| find(&|camera, _| short_camera(&camera.name) == short))
            .or_else(|| find(&|camera, _| camera_alias(&camera.name) == short))
    }

    /// The image of every camera, with its key.
    pub(super) fn choose<'a>(
        &self,
        images: &'a BTreeMap<String, Image>,
        problems: &mut Vec<Problem>,
        warnings: &mut Vec<Warning>,
    ) -> Vec<Option<(&'a String, &'a Image)>> {
        let mut chosen: Vec<Option<(&String, &Image)>> = vec![None; self.cameras.len()];
        for (key, image) in images {
            match self.position(key) {
                Some(at) => match chosen[at] {
                    None => chosen[at] = Some((key, image)),
                    Some((first, _)) => problems.push(Problem::SameCamera {
                        first: first.clone(),
                        second: key.clone(),
                        camera: self.cameras[at].name.clone(),
                    }),
                },
                None if self.ignores(key) => {}
                None => warnings.push(Warning::ImageIgnored { key: key.clone() }),
            }
        }
        self.check_missing(&chosen, problems);
        chosen
    }

    fn check_missing<T>(&self, chosen: &[Option<T>], problems: &mut Vec<Problem>) {
        let fed = || {
            self.cameras
                .iter()
                .zip(chosen)
                .filter_map(|(camera, image)| Some((camera.source.as_ref()?, image)))
        };
        let mut missing = fed().filter(|(source, image)| image.is_none() && !source.optional).peekable();
        if missing.peek().is_none() && chosen.iter().all(Option::is_none) {
            problems.push(Problem::NoImages { known: fed().map(|(source, _)| source.key.clone()).collect() });
        }
        problems.extend(missing.map(|(source, _)| Problem::ImageMissing { key: source.key.clone() }));
    }
}
