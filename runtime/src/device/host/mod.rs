//! The host CPU as a device: the embedded default, and the truth for the other devices.
//!
//! Invariant *same-bits*: every value of a result is computed by the same operations in the same order whatever the
//! number of threads, the other members of a batch and the cut into slices. The kernels keep it by splitting work by
//! rows and columns of results only, never along a sum.

pub(super) mod activation;
mod attention;
mod band;
mod decoder;
mod expert;
mod first_step;
pub(super) mod gemm;
mod linear;
pub mod measure;
pub(super) mod norm;
mod pages;
mod prefix;
pub(super) mod rope;
mod scratch;
mod suffix;
pub(super) mod time;
pub(super) mod vectorise;
pub(super) mod vision;

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

use rayon::ThreadPool;

pub use expert::ExpertSlice;
pub use gemm::Kernel;
pub use prefix::PrefixSlice;
pub use vision::VisionSlice;
pub(crate) use vision::unfold;

use crate::Tensor;
use gemm::{Rounding, Rows, Words};
use scratch::ScratchPool;

/// In which type products take their factors. Sums, norms, softmax and the residual stream are f32 in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeDtype {
    /// Weights, and activations that enter a product (queries, keys, values and shares of attention among them), are
    /// rounded to bf16.
    #[default]
    Bf16,
    /// Nothing is rounded.
    F32,
}

/// A word that names no [`ComputeDtype`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compute type: expected bf16 or f32")]
pub struct NoSuchDtype(String);

impl FromStr for ComputeDtype {
    type Err = NoSuchDtype;

    fn from_str(word: &str) -> Result<Self, NoSuchDtype> {
        match word {
            "bf16" => Ok(ComputeDtype::Bf16),
            "f32" => Ok(ComputeDtype::F32),
            other => Err(NoSuchDtype(other.into())),
        }
    }
}

impl std::fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ComputeDtype::Bf16 => "bf16",
            ComputeDtype::F32 => "f32",
        })
    }
}

/// A device's threads could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NoThreads {
    /// More than any machine has use for.
    #[error("{0} worker threads were asked for: expected 1 to {MAX_THREADS}")]
    TooMany(usize),
    /// The operating system gave none.
    #[error("cannot start {threads} worker threads: {source}")]
    Refused {
        /// How many were asked for.
        threads: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
}

/// Most threads of a device.
const MAX_THREADS: usize = 1024;

/// A pool of threads that runs slices of a policy.
pub struct HostDevice {
    pool: ThreadPool,
    dtype: ComputeDtype,
    kernel: Kernel,
    scratch: Arc<ScratchPool>,
}

impl HostDevice {
    /// A device of that many threads; as many as there are cores when `None`.
    ///
    /// # Errors
    /// When there are too many threads, or they cannot be started.
    pub fn new(threads: Option<NonZeroUsize>, dtype: ComputeDtype) -> Result<Arc<Self>, NoThreads> {
        Self::with_kernel(threads, dtype, Kernel::fastest())
    }

    /// The same on the instructions that are named, instead of this CPU's fastest.
    ///
    /// # Errors
    /// Likewise.
    ///
    /// # Panics
    /// When this CPU has no such instructions.
    pub fn with_kernel(
        threads: Option<NonZeroUsize>,
        dtype: ComputeDtype,
        kernel: Kernel,
    ) -> Result<Arc<Self>, NoThreads> {
        assert!(Kernel::available().contains(&kernel), "this CPU has no {kernel:?}");
        let threads = threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            NonZeroUsize::get,
        );
        if threads > MAX_THREADS {
            return Err(NoThreads::TooMany(threads));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("host-{index}"))
            .build()
            .map_err(|source| NoThreads::Refused { threads, source })?;
        Ok(Arc::new(Self { pool, dtype, kernel, scratch: Arc::default() }))
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// In which type products take their factors.
    pub fn dtype(&self) -> ComputeDtype {
        self.dtype
    }

    /// The instructions that products run on.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Runs `work` on a thread of the device, where everything that is split over its threads starts without waking one.
    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// How values that enter a product are rounded.
    fn rounding(&self) -> Rounding {
        match (self.dtype, self.kernel.words_of_bf16()) {
            (ComputeDtype::F32, _) => Rounding::F32,
            (ComputeDtype::Bf16, Words::Single) => Rounding::Bf16AsF32,
            (ComputeDtype::Bf16, Words::Pair) => Rounding::Bf16Pairs,
        }
    }

    /// Rows for a product in the compute type, not written yet.
    fn rows(&self, rows: usize, width: usize) -> Rows {
        Rows::unwritten(&self.scratch, self.rounding(), rows, width)
    }

    /// Row-major values as rows for a product in the compute type.
    fn rows_of(&self, values: &[f32], width: usize) -> Rows {
        Rows::of(self, self.rounding(), values, width)
    }

    /// Rounds values that are about to enter a product to the compute type.
    fn round(&self, values: &mut [f32]) {
        if self.dtype == ComputeDtype::Bf16 {
            activation::round_all_to_bf16(values);
        }
    }
}

/// A tensor whose values were computed for this shape.
pub(crate) fn of_shape(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Tensor {
    Tensor::new(shape, data).expect("kernels give as many values as their shapes say")
}
