//! Safetensors files, mapped into memory and read tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

/// Longest header that is parsed, in bytes: ten times what the 813 tensors of π0.5 need.
const MAX_HEADER_BYTES: usize = 2 << 20;

/// Tensors of a corrupt file beyond this many are counted, not listed.
const LISTED: usize = 3;

/// A tensor as it lies in the file: nothing is read before it is asked for.
#[derive(Clone)]
pub struct StoredTensor {
    file: Arc<Mmap>,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl StoredTensor {
    /// Element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The little-endian bytes of all elements in row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// When the shapes differ in their number of elements.
    pub(crate) fn reshaped(self, shape: Vec<usize>) -> Self {
        assert_eq!(
            self.elements(),
            shape.iter().product::<usize>(),
            "a reshape keeps the number of elements"
        );
        Self { shape, ..self }
    }

    /// Row `index` of a matrix as f32, or `None` past its end.
    pub(crate) fn row(&self, index: usize) -> Option<Vec<f32>> {
        let bytes = self.bytes();
        let row_bytes = bytes.len().checked_div(self.shape[0])?;
        let start = index.checked_mul(row_bytes)?;
        let mut values = vec![0.0; self.elements() / self.shape[0]];
        widen(self.dtype, bytes.get(start..start.checked_add(row_bytes)?)?, &mut values);
        Some(values)
    }

    /// Whether [`StoredTensor::to_f32`] can read it.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
    }

    /// Lets go of the memory that holds its bytes; whoever reads them again reads the file.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the map is a file's and is only read, so pages that are gone come back as they were.
            #[allow(unsafe_code)]
            // Without it more memory stays taken, and nothing else changes.
            let _ = unsafe {
                self.file.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    self.range.start,
                    self.range.len(),
                )
            };
        }
    }

    /// All elements as integers, where they are booleans or integers.
    pub fn to_integers(&self) -> Option<Vec<i64>> {
        let bytes = self.bytes();
        Some(match self.dtype {
            Dtype::BOOL | Dtype::U8 => bytes.iter().map(|&byte| byte.into()).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
            Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            _ => return None,
        })
    }

    /// All elements as f32; exact for bf16, f16 and f32.
    ///
    /// # Panics
    /// For other element types: see [`StoredTensor::is_float`].
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        widen(self.dtype, self.bytes(), &mut values);
        values
    }
}

/// Widens little-endian `bytes` of a float type to f32, element by element.
///
/// # Panics
/// When `dtype` is not F32, BF16 or F16.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        Dtype::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        Dtype::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*b).to_f32();
            }
        }
        _ => unreachable!("readers ask whether a tensor is of a float type before they read it as one"),
    }
}

/// A file could not be read as safetensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// It cannot be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not what its name says.
    #[error("{path} is corrupt: {problem}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
}

/// A mapped file, by the names in its header.
pub struct TensorFile {
    path: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
}

impl TensorFile {
    /// Maps `path` and parses its header. Allocates in proportion to the header's bytes, never to what they claim.
    ///
    /// # Errors
    /// When the file cannot be read, or header, offsets, shapes and length contradict each other.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let open_error = |source| TensorFileError::Open { path: path.into(), source };
        let file = File::open(path).map_err(open_error)?;
        // SAFETY: the map is only read. Another process that truncates or rewrites the file while it is mapped
        // breaks this; that is the price of not copying gigabytes, and the same as every safetensors reader pays.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(open_error)?;
        let tensors = parse(Arc::new(map))
            .map_err(|problem| TensorFileError::Corrupt { path: path.into(), problem })?;
        Ok(Self { path: path.into(), tensors })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// Reads the header: eight bytes of length, JSON, then the tensors back to back.
fn parse(file: Arc<Mmap>) -> Result<BTreeMap<String, StoredTensor>, String> {
    let found = file.len();
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("it has {found} bytes, a header needs at least 8"));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed"));
    }
    let Some(header) = rest.get(..length) else {
        return Err(format!(
            "its header claims {length} bytes, but only {} follow: truncated? Fetch it again",
            rest.len()
        ));
    };
    let header: Header =
        serde_json::from_slice(header).map_err(|error| format!("its header is not valid: {error}"))?;

    let data = 8 + length;
    let mut tensors = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, info) in header.tensors {
        match locate(&info, data, found) {
            Ok(range) => {
                let tensor = StoredTensor {
                    file: Arc::clone(&file),
                    range,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                };
                tensors.insert(name, tensor);
            }
            Err(problem) => problems.push(format!("tensor `{name}` {problem}")),
        }
    }
    if problems.is_empty() {
        problems.extend(gaps(&tensors, data, found));
    }
    let more = problems.len().saturating_sub(LISTED);
    problems.truncate(LISTED);
    match (problems.is_empty(), more) {
        (true, _) => Ok(tensors),
        (false, 0) => Err(problems.join("; ")),
        (false, _) => Err(format!("{}; and {more} more tensors", problems.join("; "))),
    }
}

/// The first byte of the data that belongs to no tensor or to two.
fn gaps(tensors: &BTreeMap<String, StoredTensor>, data: usize, file_bytes: usize) -> Option<String> {
    let mut ranges: Vec<&Range<usize>> = tensors.values().map(|tensor| &tensor.range).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut end = data;
    for range in ranges {
        if range.start != end {
            return Some(format!("its tensors leave gaps or overlap at byte {} of the data", end - data));
        }
        end = range.end;
    }
    (end != file_bytes).then(|| format!("{} bytes follow its last tensor", file_bytes - end))
}

/// Where in the file a tensor lies, when its offsets, shape and dtype agree with each other and with the file.
fn locate(info: &TensorInfo, data: usize, file_bytes: usize) -> Result<Range<usize>, String> {
    let (start, end) = info.data_offsets;
    let bytes = info
        .shape
        .iter()
        .try_fold(info.dtype.bitsize(), |bits, &dim| bits.checked_mul(dim))
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| format!("has an absurd shape {:?}", info.shape))?;
    if start.checked_add(bytes) != Some(end) {
        return Err(format!(
            "of shape {:?} and type {:?} needs {bytes} bytes, its offsets say {start}..{end}",
            info.shape, info.dtype
        ));
    }
    match (data.checked_add(start), data.checked_add(end)) {
        (Some(start), Some(end)) if end <= file_bytes => Ok(start..end),
        _ => Err(format!(
            "ends at byte {end} of the data, but the file holds {}: truncated? Fetch it again",
            file_bytes - data
        )),
    }
}
