//! What can be wrong with a checkpoint.

use std::fmt;
use std::path::PathBuf;

use safetensors::Dtype;
use tensact_topology::ModelSizes;

use crate::config::ConfigError;
use crate::tensor_file::TensorFileError;

/// A checkpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There are no weights.
    #[error(
        "no checkpoint at {path}: expected a folder with model.safetensors (or model.safetensors.index.json and its shards) and config.json, or a .safetensors file"
    )]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The index of the shards cannot be used.
    #[error(transparent)]
    Index(#[from] TensorFileError),
    /// Files of weights cannot be used.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Files(Vec<TensorFileError>),
    /// The configuration beside the weights cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tensors are not those of a π0 or π0.5 policy.
    #[error("{path} does not hold the tensors of a policy{}{}", of(.sizes), list(.findings))]
    Contents {
        /// The checkpoint.
        path: PathBuf,
        /// The sizes it was measured against, where it could be measured.
        sizes: Option<Box<ModelSizes>>,
        /// Everything that is wrong.
        findings: Vec<Finding>,
    },
}

fn of(sizes: &Option<Box<ModelSizes>>) -> String {
    sizes.as_ref().map(|sizes| format!(" ({})", sizes.variant)).unwrap_or_default()
}

/// Findings of one kind beyond this many are counted, not listed.
const LISTED: usize = 50;

fn list(findings: &[Finding]) -> String {
    let mut text = format!(": {} finding(s)", findings.len());
    for finding in findings.iter().take(LISTED) {
        text.push_str(&format!("\n  {finding}"));
    }
    if findings.len() > LISTED {
        text.push_str(&format!("\n  and {} more", findings.len() - LISTED));
    }
    text
}

/// One thing that is wrong with a checkpoint's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A tensor that the policy needs is not there.
    Missing {
        /// openpi's name.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },
    /// A tensor that no policy has is there.
    Unexpected {
        /// Its name, as openpi would write it.
        name: String,
    },
    /// A tensor has another shape than the others demand.
    Misshapen {
        /// openpi's name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that fits the others.
        expected: Vec<usize>,
    },
    /// A tensor is not of a float type.
    WrongDtype {
        /// openpi's name.
        name: String,
        /// Type in the file.
        found: Dtype,
    },
    /// Two tensors of the file mean the same.
    Duplicate {
        /// openpi's name.
        name: String,
        /// The file with the second one.
        file: PathBuf,
    },
    /// Tensors and configuration disagree, or sizes do not go together.
    Sizes {
        /// What disagrees, and what to do.
        problem: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Missing { name, shape } => write!(f, "missing     {name} {shape:?}"),
            Finding::Unexpected { name } => write!(f, "unexpected  {name}"),
            Finding::Misshapen { name, found, expected } => {
                write!(f, "misshapen   {name} is {found:?}, expected {expected:?}")
            }
            Finding::WrongDtype { name, found } => {
                write!(f, "wrong dtype {name} is {found:?}, expected F32, BF16 or F16")
            }
            Finding::Duplicate { name, file } => {
                write!(f, "duplicate   {name} stands twice, the second time in {}", file.display())
            }
            Finding::Sizes { problem } => write!(f, "sizes       {problem}"),
        }
    }
}
