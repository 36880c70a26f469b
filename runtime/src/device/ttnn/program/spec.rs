//! What a tensor on a chip is, before it has values.

use std::fmt;

use serde::Serialize;
use tensact_topology::WeightDtype;

/// Side of a tile. Matrices in tile layout are stored padded to multiples of it.
pub const TILE: usize = 32;

/// Values that share an exponent in `bfp8_b`.
pub const BFP8_BLOCK: usize = 16;

/// How one value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Two bytes.
    Bf16,
    /// One byte, and an exponent for 16 neighbours of a row: tiles only.
    #[serde(rename = "bfp8_b")]
    Bfp8B,
    /// Four bytes.
    F32,
    /// Token, position and step numbers.
    U32,
}

impl Dtype {
    /// Whether values are numbers to compute with.
    pub fn is_float(self) -> bool {
        self != Dtype::U32
    }

    /// Bytes of this many values, a multiple of [`BFP8_BLOCK`].
    pub fn bytes(self, values: usize) -> usize {
        match self {
            Dtype::Bf16 => 2 * values,
            Dtype::Bfp8B => values + values / BFP8_BLOCK,
            Dtype::F32 | Dtype::U32 => 4 * values,
        }
    }
}

impl From<WeightDtype> for Dtype {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::Bf16 => Dtype::Bf16,
            WeightDtype::Bfp8B => Dtype::Bfp8B,
            WeightDtype::F32 => Dtype::F32,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::Bf16 => "bf16",
            Dtype::Bfp8B => "bfp8_b",
            Dtype::F32 => "f32",
            Dtype::U32 => "u32",
        })
    }
}

/// In which order values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// 32 × 32 tiles, which is what the arithmetic takes.
    Tile,
    /// Row after row: numbers to look things up by, and tables to look them up in.
    RowMajor,
}

/// Where a tensor lies, interleaved over the banks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// The chip's DRAM.
    Dram,
    /// The cores' own memory.
    L1,
}

/// Shape, dtype and place of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TensorSpec {
    /// Always four dimensions, as TT-NN's operations on heads want them.
    pub shape: [usize; 4],
    /// How one value is stored.
    pub dtype: Dtype,
    /// In which order.
    pub layout: Layout,
    /// Where.
    pub memory: Memory,
}

impl TensorSpec {
    /// A tensor of tiles in DRAM.
    pub fn tiles(shape: [usize; 4], dtype: Dtype) -> Self {
        Self { shape, dtype, layout: Layout::Tile, memory: Memory::Dram }
    }

    /// Rows in DRAM.
    pub fn rows(shape: [usize; 4], dtype: Dtype) -> Self {
        Self { shape, dtype, layout: Layout::RowMajor, memory: Memory::Dram }
    }

    /// The same tensor elsewhere.
    pub fn in_memory(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }

    /// The shape that is stored: tiles are whole.
    pub fn padded(&self) -> [usize; 4] {
        let [a, b, rows, columns] = self.shape;
        match self.layout {
            Layout::Tile => [a, b, rows.next_multiple_of(TILE), columns.next_multiple_of(TILE)],
            Layout::RowMajor => self.shape,
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.padded().iter().product())
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = match self.layout {
            Layout::Tile => "tiles",
            Layout::RowMajor => "rows",
        };
        let memory = match self.memory {
            Memory::Dram => "DRAM",
            Memory::L1 => "L1",
        };
        write!(f, "{:?} {} {layout} in {memory}", self.shape, self.dtype)
    }
}
