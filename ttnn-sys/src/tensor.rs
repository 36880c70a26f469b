//! Tensors on a mesh.

use crate::{DataType, Error, Layout, Memory, Mesh, Result, bridge::ffi, types::check_sizes};
use cxx::{Exception, UniquePtr};
use half::{bf16, slice::HalfFloatSliceExt};
use std::fmt;

/// A tensor in the memory of every chip of a mesh. It keeps the mesh open, and gives its memory back when dropped,
/// unless TT-NN made another tensor share it (as [`reshape`](crate::ops::reshape) may).
pub struct Tensor {
    parts: Parts,
    mesh: Mesh,
}

/// A tensor of TT-NN and what is asked of it most.
pub(crate) struct Parts {
    raw: UniquePtr<ffi::Tensor>,
    facts: ffi::TensorFacts,
}

impl Parts {
    pub(crate) fn of(raw: UniquePtr<ffi::Tensor>) -> std::result::Result<Self, Exception> {
        let facts = ffi::tensor_facts(&raw)?;
        Ok(Self { raw, facts })
    }
}

// SAFETY: a TT-NN tensor is bound to no thread, and its reference counts are atomic.
unsafe impl Send for ffi::Tensor {}
// SAFETY: shared references reach TT-NN only under the lock of the tensor's mesh (`Mesh::run`); `Tensor` answers
// everything else from `facts`.
unsafe impl Sync for ffi::Tensor {}

impl Tensor {
    pub(crate) fn new(parts: Parts, mesh: &Mesh) -> Self {
        Self { parts, mesh: mesh.clone() }
    }

    pub(crate) fn raw(&self) -> &ffi::Tensor {
        &self.parts.raw
    }

    /// Uploads numbers, which TT-NN rounds to `dtype` (to nearest, ties to even). Every chip of the mesh gets them all.
    ///
    /// # Errors
    /// Where the numbers do not fill the shape, `dtype` is [`DataType::U32`], or TT-NN refuses, for example for
    /// want of memory.
    pub fn from_f32(
        mesh: &Mesh,
        values: &[f32],
        shape: &[u32],
        dtype: DataType,
        layout: Layout,
        memory: Memory,
    ) -> Result<Self> {
        const OPERATION: &str = "upload of f32";
        check_dtype(OPERATION, dtype, FLOATS)?;
        check_length(OPERATION, shape, values.len())?;
        let memory = memory.checked(OPERATION)?;
        mesh.make(OPERATION, |mesh| {
            ffi::tensor_from_f32(mesh, values, shape, dtype.into(), layout.into(), &memory)
        })
    }

    /// Uploads bf16 as it is.
    ///
    /// # Errors
    /// As for [`Tensor::from_f32`].
    pub fn from_bf16(
        mesh: &Mesh,
        values: &[bf16],
        shape: &[u32],
        layout: Layout,
        memory: Memory,
    ) -> Result<Self> {
        const OPERATION: &str = "upload of bf16";
        check_length(OPERATION, shape, values.len())?;
        let memory = memory.checked(OPERATION)?;
        let bits = values.reinterpret_cast();
        mesh.make(OPERATION, |mesh| ffi::tensor_from_bf16(mesh, bits, shape, layout.into(), &memory))
    }

    /// Uploads integers as they are.
    ///
    /// # Errors
    /// As for [`Tensor::from_f32`].
    pub fn from_u32(
        mesh: &Mesh,
        values: &[u32],
        shape: &[u32],
        layout: Layout,
        memory: Memory,
    ) -> Result<Self> {
        const OPERATION: &str = "upload of u32";
        check_length(OPERATION, shape, values.len())?;
        let memory = memory.checked(OPERATION)?;
        mesh.make(OPERATION, |mesh| ffi::tensor_from_u32(mesh, values, shape, layout.into(), &memory))
    }

    /// Uploads bfp8_b tiles in TT-NN's own format, as [`pack_bfp8`] gives them.
    ///
    /// # Errors
    /// Where there are not 272 words for each tile of the padded shape, or TT-NN refuses.
    pub fn from_bfp8_words(mesh: &Mesh, words: &[u32], shape: &[u32], memory: Memory) -> Result<Self> {
        const OPERATION: &str = "upload of bfp8_b";
        check_sizes(OPERATION, "a shape", shape)?;
        let memory = memory.checked(OPERATION)?;
        mesh.make(OPERATION, |mesh| ffi::tensor_from_bfp8_words(mesh, words, shape, &memory))
    }

    /// Memory that holds whatever it held before.
    ///
    /// # Errors
    /// Where TT-NN refuses, for example for want of memory.
    pub fn empty(
        mesh: &Mesh,
        shape: &[u32],
        dtype: DataType,
        layout: Layout,
        memory: Memory,
    ) -> Result<Self> {
        const OPERATION: &str = "allocation";
        check_sizes(OPERATION, "a shape", shape)?;
        let memory = memory.checked(OPERATION)?;
        mesh.make(OPERATION, |mesh| ffi::empty_tensor(mesh, shape, dtype.into(), layout.into(), &memory))
    }

    /// Overwrites the tensor where it lies, so that a trace that reads it sees the new numbers.
    ///
    /// # Errors
    /// As for [`Tensor::from_f32`].
    pub fn write_f32(&self, values: &[f32]) -> Result<()> {
        const OPERATION: &str = "write of f32";
        check_dtype(OPERATION, self.dtype(), FLOATS)?;
        check_length(OPERATION, self.shape(), values.len())?;
        self.mesh.run(OPERATION, |_| ffi::write_f32(self.raw(), values))
    }

    /// Overwrites a [`DataType::Bf16`] tensor where it lies.
    ///
    /// # Errors
    /// As for [`Tensor::from_f32`].
    pub fn write_bf16(&self, values: &[bf16]) -> Result<()> {
        const OPERATION: &str = "write of bf16";
        check_dtype(OPERATION, self.dtype(), &[DataType::Bf16])?;
        check_length(OPERATION, self.shape(), values.len())?;
        self.mesh.run(OPERATION, |_| ffi::write_bf16(self.raw(), values.reinterpret_cast()))
    }

    /// Overwrites a [`DataType::U32`] tensor where it lies.
    ///
    /// # Errors
    /// As for [`Tensor::from_f32`].
    pub fn write_u32(&self, values: &[u32]) -> Result<()> {
        const OPERATION: &str = "write of u32";
        check_dtype(OPERATION, self.dtype(), &[DataType::U32])?;
        check_length(OPERATION, self.shape(), values.len())?;
        self.mesh.run(OPERATION, |_| ffi::write_u32(self.raw(), values))
    }

    /// Overwrites a [`DataType::Bfp8B`] tensor where it lies with tiles in TT-NN's own format.
    ///
    /// # Errors
    /// As for [`Tensor::from_bfp8_words`].
    pub fn write_bfp8_words(&self, words: &[u32]) -> Result<()> {
        const OPERATION: &str = "write of bfp8_b";
        check_dtype(OPERATION, self.dtype(), &[DataType::Bfp8B])?;
        self.mesh.run(OPERATION, |_| ffi::write_bfp8_words(self.raw(), words))
    }

    /// Waits for the work that makes the tensor and reads it, without its padding and in row-major order, from the
    /// first chip of the mesh.
    ///
    /// # Errors
    /// Where the tensor holds integers, or TT-NN fails.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        const OPERATION: &str = "readback of f32";
        check_dtype(OPERATION, self.dtype(), FLOATS)?;
        self.mesh.run(OPERATION, |_| ffi::read_f32(self.raw()))
    }

    /// As [`Tensor::to_f32`], for integers.
    ///
    /// # Errors
    /// Where the tensor does not hold integers, or TT-NN fails.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        const OPERATION: &str = "readback of u32";
        check_dtype(OPERATION, self.dtype(), &[DataType::U32])?;
        self.mesh.run(OPERATION, |_| ffi::read_u32(self.raw()))
    }

    /// Gives the memory back now, also where other tensors share it; those are then refused by every operation.
    ///
    /// # Errors
    /// Where TT-NN fails.
    pub fn deallocate(self) -> Result<()> {
        self.mesh.run("deallocation", |_| ffi::deallocate(self.raw()))
    }

    /// The shape without padding.
    pub fn shape(&self) -> &[u32] {
        &self.parts.facts.shape
    }

    /// The shape in memory: in [`Layout::Tile`] the last two dimensions are multiples of 32.
    pub fn padded_shape(&self) -> &[u32] {
        &self.parts.facts.padded_shape
    }

    /// How a number is stored.
    pub fn dtype(&self) -> DataType {
        self.parts.facts.dtype.into()
    }

    /// How the numbers lie.
    pub fn layout(&self) -> Layout {
        self.parts.facts.layout.into()
    }

    /// Whether it lies in L1 instead of DRAM.
    pub fn is_in_l1(&self) -> bool {
        self.parts.facts.on_l1
    }

    /// Whether it is cut over cores.
    pub fn is_sharded(&self) -> bool {
        self.parts.facts.sharded
    }

    /// The mesh it lies on.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.mesh.discard(&mut self.parts.raw, !self.parts.facts.planned);
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = if self.is_in_l1() { "L1" } else { "DRAM" };
        write!(f, "Tensor({:?} {:?} {:?} in {memory})", self.shape(), self.dtype(), self.layout())
    }
}

/// Packs numbers into bfp8_b tiles on the host, as TT-NN does it: the reference for any other encoder. Tiles of
/// 32 × 32 in row-major order, the last two dimensions padded with zeros; a tile is 64 bytes of exponents and 1024 bytes
/// of signs and mantissas, each in four faces of 16 × 16, in words of the host's byte order. TT-NN asks the chips
/// of the mesh how they align the exponents.
///
/// # Errors
/// Where the numbers do not fill the shape, or TT-NN refuses.
pub fn pack_bfp8(mesh: &Mesh, values: &[f32], shape: &[u32]) -> Result<Vec<u32>> {
    const OPERATION: &str = "packing of bfp8_b";
    check_length(OPERATION, shape, values.len())?;
    mesh.run(OPERATION, |mesh| ffi::pack_bfp8(mesh, values, shape))
}

/// Unpacks what [`pack_bfp8`] packed, without the padding.
///
/// # Errors
/// Where there are not 272 words for each tile of the padded shape, or TT-NN refuses.
pub fn unpack_bfp8(mesh: &Mesh, words: &[u32], shape: &[u32]) -> Result<Vec<f32>> {
    const OPERATION: &str = "unpacking of bfp8_b";
    check_sizes(OPERATION, "a shape", shape)?;
    mesh.run(OPERATION, |mesh| ffi::unpack_bfp8(mesh, words, shape))
}

const FLOATS: &[DataType] = &[DataType::Bf16, DataType::F32, DataType::Bfp8B];

fn check_dtype(operation: &'static str, found: DataType, allowed: &'static [DataType]) -> Result<()> {
    if allowed.contains(&found) { Ok(()) } else { Err(Error::DataType { operation, found, allowed }) }
}

fn check_length(operation: &'static str, shape: &[u32], found: usize) -> Result<()> {
    check_sizes(operation, "a shape", shape)?;
    let expected = shape.iter().fold(1_u64, |volume, &dim| volume.saturating_mul(dim.into()));
    let found = found as u64;
    if expected == found {
        Ok(())
    } else {
        Err(Error::Length { operation, shape: shape.to_vec(), expected, found })
    }
}
