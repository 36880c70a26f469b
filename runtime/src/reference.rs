//! Files of model-level tensors: inputs `in.*` of a batch, and whatever else a peer computed from them.

use std::path::PathBuf;

use tensact_topology::{ModelSizes, Variant};

use crate::Tensor;
use crate::model::ModelInput;
use crate::model::flow::{Steps, noise};
use crate::policy::Sample;
use crate::tensor_file::{StoredTensor, TensorFile, TensorFileError};

/// Most samples that a file may hold: what a batch takes in memory must not follow from a header alone.
const MAX_BATCH: usize = 256;
/// Most instruction tokens of a sample.
const MAX_TOKENS: usize = 8192;

/// A file of model-level tensors could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// It is not a safetensors file.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// An input is missing.
    #[error("{path} has no tensor `{name}`, which the policy needs: expected {expected}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it should be.
        expected: String,
    },
    /// A tensor does not belong to this policy.
    #[error(
        "{path}: tensor `{name}` is {found}, expected {expected}: does the file belong to this checkpoint?"
    )]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// An image is of a camera that the policy does not have.
    #[error("{path}: `in.image.{camera}` is of no camera of the policy: expected a number below {} or one of {}", .cameras.len(), .cameras.join(", "))]
    Camera {
        /// The file.
        path: PathBuf,
        /// The camera in the file.
        camera: String,
        /// The policy's cameras.
        cameras: Vec<String>,
    },
    /// There are no images, or two of one camera.
    #[error("{path}: {problem}; expected `in.image.0`, `in.image.1`, … or the names of cameras: {}", .cameras.join(", "))]
    Cameras {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// The policy's cameras.
        cameras: Vec<String>,
    },
    /// An input that no policy takes, such as a misspelt one.
    #[error(
        "{path}: nothing reads `{name}`; inputs are in.image.*, in.img_mask.*, in.lang_tokens, in.lang_masks, in.state, in.noise"
    )]
    Unread {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

/// Inputs of a batch, and which rows of the padded tensors beside them are valid.
pub struct ReferenceInputs {
    /// One sample per member of the batch.
    pub samples: Vec<Sample>,
    /// Names of the cameras in the file, in the order of the prefix.
    pub cameras: Vec<String>,
    /// Tokens an instruction is padded to in the file.
    pub prompt_tokens: usize,
    /// Per sample: which of the padded instruction tokens are valid.
    pub valid_tokens: Vec<Vec<usize>>,
}

/// Reads `in.image.{camera} [B, 3, S, S]`, `in.img_mask.{camera} [B]`, `in.lang_tokens [B, L]`, `in.lang_masks [B, L]`,
/// `in.state [B, state_dim]` and `in.noise [B, horizon, action_dim]`. Masks may be absent, which means valid; without
/// noise, sample `i` gets that of seed `seed + i`. A camera without a tensor is absent, but one must be there.
///
/// # Errors
/// When a tensor is missing or does not have the policy's shape.
pub fn read_inputs(
    file: &TensorFile,
    sizes: &ModelSizes,
    cameras: &[String],
    steps: Steps,
    seed: u64,
) -> Result<ReferenceInputs, ReferenceError> {
    let reader = Reader { file };
    let &[batch, length] = reader.need("in.lang_tokens", "[batch, length]")?.shape() else {
        return Err(reader.wrong("in.lang_tokens", "[batch, length]".into()));
    };
    if !(1..=MAX_BATCH).contains(&batch) || !(1..=MAX_TOKENS).contains(&length) {
        let expected = format!("[1 to {MAX_BATCH} samples, 1 to {MAX_TOKENS} tokens]");
        return Err(reader.wrong("in.lang_tokens", expected));
    }
    let token_ids = reader.token_ids(&[batch, length])?;
    let valid = reader.mask("in.lang_masks", &[batch, length])?;
    let state = match sizes.variant {
        Variant::Pi0 => reader.floats("in.state", &[batch, sizes.state_dim])?,
        Variant::Pi05 => Tensor::zeros([batch, sizes.state_dim]),
    };
    let given_noise = match file.tensors().contains_key("in.noise") {
        true => Some(reader.floats("in.noise", &[batch, sizes.horizon, sizes.action_dim])?),
        false => None,
    };
    let images = reader.images(batch, cameras)?;
    reader.nothing_unread(&images)?;

    let valid_of = |sample: usize| (0..length).filter(|i| valid[sample * length + i]).collect::<Vec<_>>();
    let sample = |sample: usize| Sample {
        input: ModelInput {
            images: images.iter().map(|image| image.of(sample)).collect(),
            tokens: valid_of(sample).into_iter().map(|i| token_ids[sample * length + i]).collect(),
            state: state.row(sample).to_vec(),
        },
        noise: match &given_noise {
            Some(given) => given.member(sample),
            None => noise(sizes, seed.wrapping_add(sample as u64)),
        },
        steps,
        guidance: None,
    };
    Ok(ReferenceInputs {
        samples: (0..batch).map(sample).collect(),
        cameras: images.iter().map(|image| image.name.clone()).collect(),
        prompt_tokens: length,
        valid_tokens: (0..batch).map(valid_of).collect(),
    })
}

/// One camera's images.
struct CameraImages {
    name: String,
    images: Tensor,
    present: Vec<bool>,
}

impl CameraImages {
    fn of(&self, sample: usize) -> Option<Tensor> {
        self.present[sample].then(|| self.images.member(sample))
    }
}

struct Reader<'a> {
    file: &'a TensorFile,
}

impl<'a> Reader<'a> {
    fn need(&self, name: &str, expected: &str) -> Result<&'a StoredTensor, ReferenceError> {
        self.file.tensors().get(name).ok_or_else(|| ReferenceError::Missing {
            path: self.file.path().into(),
            name: name.into(),
            expected: expected.into(),
        })
    }

    fn wrong(&self, name: &str, expected: String) -> ReferenceError {
        let found = self
            .file
            .tensors()
            .get(name)
            .map_or_else(|| "missing".into(), |tensor| format!("{:?} {:?}", tensor.dtype(), tensor.shape()));
        ReferenceError::Tensor { path: self.file.path().into(), name: name.into(), found, expected }
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Tensor, ReferenceError> {
        let tensor = self.need(name, &format!("floats {shape:?}"))?;
        if tensor.shape() != shape || !tensor.is_float() {
            return Err(self.wrong(name, format!("floats {shape:?}")));
        }
        Tensor::new(shape, tensor.to_f32()).map_err(|_| self.wrong(name, format!("floats {shape:?}")))
    }

    fn integers(&self, name: &str, shape: &[usize]) -> Result<Vec<i64>, ReferenceError> {
        let tensor = self.need(name, &format!("integers {shape:?}"))?;
        let values = tensor.to_integers().filter(|_| tensor.shape() == shape);
        values.ok_or_else(|| self.wrong(name, format!("integers {shape:?}")))
    }

    fn token_ids(&self, shape: &[usize]) -> Result<Vec<u32>, ReferenceError> {
        let ids = self.integers("in.lang_tokens", shape)?;
        let ids = ids.into_iter().map(u32::try_from).collect::<Result<_, _>>();
        ids.map_err(|_| self.wrong("in.lang_tokens", "ids of tokens, from 0 on".into()))
    }

    /// All true where there is no mask.
    fn mask(&self, name: &str, shape: &[usize]) -> Result<Vec<bool>, ReferenceError> {
        if !self.file.tensors().contains_key(name) {
            return Ok(vec![true; shape.iter().product()]);
        }
        Ok(self.integers(name, shape)?.into_iter().map(|valid| valid != 0).collect())
    }

    /// The images of all cameras in the file, in the order of the policy's cameras.
    fn images(&self, batch: usize, cameras: &[String]) -> Result<Vec<CameraImages>, ReferenceError> {
        let mut images = Vec::new();
        for name in self.file.tensors().keys().filter_map(|name| name.strip_prefix("in.image.")) {
            let numbered = (0..cameras.len()).find(|index| index.to_string() == name);
            let index = numbered.or_else(|| cameras.iter().position(|camera| camera == name));
            let index = index.ok_or_else(|| ReferenceError::Camera {
                path: self.file.path().into(),
                camera: name.into(),
                cameras: cameras.to_vec(),
            })?;
            images.push((index, self.camera(batch, name)?));
        }
        images.sort_by_key(|(index, _)| *index);
        let twice = images.windows(2).find(|pair| pair[0].0 == pair[1].0);
        let problem = match twice {
            Some([(_, a), (_, b)]) => {
                format!("`in.image.{}` and `in.image.{}` are of one camera", a.name, b.name)
            }
            _ if images.is_empty() => "there are no images".into(),
            _ => return self.of_one_size(images.into_iter().map(|(_, camera)| camera).collect()),
        };
        Err(ReferenceError::Cameras { path: self.file.path().into(), problem, cameras: cameras.to_vec() })
    }

    /// All cameras have images of the first one's size, or prefixes would differ in more than their masks say.
    fn of_one_size(&self, images: Vec<CameraImages>) -> Result<Vec<CameraImages>, ReferenceError> {
        match images.iter().find(|camera| camera.images.shape() != images[0].images.shape()) {
            Some(odd) => {
                let expected = format!("{:?} as `in.image.{}`", images[0].images.shape(), images[0].name);
                Err(self.wrong(&format!("in.image.{}", odd.name), expected))
            }
            None => Ok(images),
        }
    }

    /// A misspelt input must not pass for an absent one.
    fn nothing_unread(&self, images: &[CameraImages]) -> Result<(), ReferenceError> {
        const OTHERS: [&str; 6] =
            ["in.lang_tokens", "in.lang_masks", "in.state", "in.noise", "in.prev_chunk", "in.image."];
        let read = |name: &str| {
            OTHERS.iter().any(|other| name == *other || (other.ends_with('.') && name.starts_with(other)))
                || images.iter().any(|camera| name.strip_prefix("in.img_mask.") == Some(&camera.name))
        };
        let mut inputs = self.file.tensors().keys().filter(|name| name.starts_with("in."));
        match inputs.find(|name| !read(name)) {
            Some(name) => Err(ReferenceError::Unread { path: self.file.path().into(), name: name.clone() }),
            None => Ok(()),
        }
    }

    fn camera(&self, batch: usize, name: &str) -> Result<CameraImages, ReferenceError> {
        let key = format!("in.image.{name}");
        let side = self.need(&key, "[batch, 3, S, S]")?.shape().last().copied().unwrap_or(0);
        Ok(CameraImages {
            name: name.into(),
            images: self.floats(&key, &[batch, 3, side, side])?,
            present: self.mask(&format!("in.img_mask.{name}"), &[batch])?,
        })
    }
}
