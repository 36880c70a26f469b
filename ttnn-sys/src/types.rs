//! Plain data: how tensors are stored and how operations compute.

use crate::{Error, Result, bridge::ffi};

/// How a number is stored on a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
    /// TT-NN's `bfloat8_b`: 16 values of a row share an exponent. Tiles only; 1088 bytes for 1024 values.
    Bfp8B,
    /// Unsigned 32-bit integers, for ids.
    U32,
}

/// How the last two dimensions lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Tiles of 32 × 32; both dimensions are padded to multiples of 32.
    Tile,
    /// Rows one after the other, without padding.
    RowMajor,
}

/// A rectangle of Tensix cores from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoreGrid {
    /// Columns of cores.
    pub x: u32,
    /// Rows of cores.
    pub y: u32,
}

/// Where a tensor lies on each chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Interleaved over the DRAM banks.
    Dram,
    /// Interleaved over the L1 of all cores.
    L1,
    /// One piece in the L1 of each core of a grid.
    Sharded(Sharding),
}

/// How a tensor, seen as a matrix of (all dimensions but the last) × last, is cut over cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sharding {
    /// Along which sides it is cut.
    pub strategy: ShardStrategy,
    /// Rows of a piece; multiples of 32 in [`Layout::Tile`].
    pub shard_height: u32,
    /// Columns of a piece; multiples of 32 in [`Layout::Tile`].
    pub shard_width: u32,
    /// The cores, filled row by row.
    pub grid: CoreGrid,
}

/// The sides a tensor is cut along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShardStrategy {
    /// Rows are dealt out; each piece has all columns.
    Height,
    /// Columns are dealt out; each piece has all rows.
    Width,
    /// Both; the grid is the grid of pieces.
    Block,
}

/// An elementwise function that other operations can apply on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x·Φ(x)`. TT-NN 0.69 has no form with tanh: this is its accurate one, with the normal distribution, which
    /// differs from the tanh form by less than 5e-4.
    Gelu,
    /// `x·sigmoid(x)`.
    Silu,
}

/// How many bits of the factors the matrix engine multiplies, which is also how many passes it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fidelity {
    /// One pass; enough for bfp8_b weights of low precision.
    LoFi,
    /// Two passes; all of bfp8_b's bits.
    HiFi2,
    /// Four passes; all of bf16's bits.
    HiFi4,
}

/// TT-NN's compute kernel configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compute {
    /// Passes of the matrix engine.
    pub fidelity: Fidelity,
    /// Sums in f32 in the destination registers, which then hold half as many tiles.
    pub fp32_accumulate: bool,
    /// Partial sums of blocks stay in L1 and are added there.
    pub packer_l1_acc: bool,
    /// Faster, coarser elementary functions.
    pub approximate: bool,
}

impl Default for Compute {
    /// As exact as bf16 tensors allow.
    fn default() -> Self {
        Self { fidelity: Fidelity::HiFi4, fp32_accumulate: true, packer_l1_acc: true, approximate: false }
    }
}

/// How a matrix product is spread over cores. Sizes are in tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MatmulProgram {
    /// TT-NN chooses.
    #[default]
    Auto,
    /// TT-NN chooses on this grid.
    CoreGrid(CoreGrid),
    /// Each core has all rows of the output and some columns (`mcast_in0`), or the other way round.
    Multicast1d {
        /// Cores.
        grid: CoreGrid,
        /// Columns of `x` that are multiplied at a time.
        in0_block_w: u32,
        /// Rows of the output that the destination registers hold.
        out_subblock_h: u32,
        /// Columns of the output that the destination registers hold.
        out_subblock_w: u32,
        /// Rows of the output that a core computes.
        per_core_m: u32,
        /// Columns of the output that a core computes.
        per_core_n: u32,
        /// Whether `x` is sent to all cores, or else the weight.
        mcast_in0: bool,
    },
    /// Each core has a block of the output; rows of `x` and columns of the weight are sent along the grid.
    Multicast2d {
        /// Cores.
        grid: CoreGrid,
        /// Columns of `x` that are multiplied at a time.
        in0_block_w: u32,
        /// Rows of the output that the destination registers hold.
        out_subblock_h: u32,
        /// Columns of the output that the destination registers hold.
        out_subblock_w: u32,
        /// Rows of the output that a core computes.
        per_core_m: u32,
        /// Columns of the output that a core computes.
        per_core_n: u32,
        /// Rows of the output go along the columns of the grid instead of its rows.
        transpose_mcast: bool,
    },
}

impl From<DataType> for ffi::DataType {
    fn from(dtype: DataType) -> Self {
        match dtype {
            DataType::Bf16 => Self::Bf16,
            DataType::F32 => Self::F32,
            DataType::Bfp8B => Self::Bfp8B,
            DataType::U32 => Self::U32,
        }
    }
}

impl From<ffi::DataType> for DataType {
    fn from(dtype: ffi::DataType) -> Self {
        match dtype {
            ffi::DataType::F32 => Self::F32,
            ffi::DataType::Bfp8B => Self::Bfp8B,
            ffi::DataType::U32 => Self::U32,
            // The shim knows four types and throws for any other.
            _ => Self::Bf16,
        }
    }
}

impl From<Layout> for ffi::Layout {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Tile => Self::Tile,
            Layout::RowMajor => Self::RowMajor,
        }
    }
}

impl From<ffi::Layout> for Layout {
    fn from(layout: ffi::Layout) -> Self {
        if layout == ffi::Layout::RowMajor { Self::RowMajor } else { Self::Tile }
    }
}

impl Memory {
    /// As the bridge takes it. TT-NN divides by the sizes of a shard, so none may be 0.
    pub(crate) fn checked(self, operation: &'static str) -> Result<ffi::Memory> {
        let interleaved =
            |placement| ffi::Memory { placement, shard_height: 0, shard_width: 0, grid_x: 0, grid_y: 0 };
        let Sharding { strategy, shard_height, shard_width, grid } = match self {
            Self::Dram => return Ok(interleaved(ffi::Placement::Dram)),
            Self::L1 => return Ok(interleaved(ffi::Placement::L1)),
            Self::Sharded(sharding) => sharding,
        };
        check_sizes(operation, "a shard and its grid", &[shard_height, shard_width, grid.x, grid.y])?;
        let placement = match strategy {
            ShardStrategy::Height => ffi::Placement::HeightSharded,
            ShardStrategy::Width => ffi::Placement::WidthSharded,
            ShardStrategy::Block => ffi::Placement::BlockSharded,
        };
        Ok(ffi::Memory { placement, shard_height, shard_width, grid_x: grid.x, grid_y: grid.y })
    }
}

impl From<Activation> for ffi::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::None => Self::None,
            Activation::Gelu => Self::Gelu,
            Activation::Silu => Self::Silu,
        }
    }
}

impl From<Compute> for ffi::Compute {
    fn from(compute: Compute) -> Self {
        let Compute { fidelity, fp32_accumulate, packer_l1_acc, approximate } = compute;
        let fidelity = match fidelity {
            Fidelity::LoFi => ffi::Fidelity::LoFi,
            Fidelity::HiFi2 => ffi::Fidelity::HiFi2,
            Fidelity::HiFi4 => ffi::Fidelity::HiFi4,
        };
        Self { fidelity, fp32_accumulate, packer_l1_acc, approximate }
    }
}

impl MatmulProgram {
    /// As the bridge takes it. TT-NN divides by these sizes, so none may be 0.
    pub(crate) fn checked(self, operation: &'static str) -> Result<ffi::MatmulProgram> {
        let program = self.to_bridge();
        let used: &[u32] = match self {
            Self::Auto => &[],
            Self::CoreGrid(_) => &[program.grid_x, program.grid_y],
            Self::Multicast1d { .. } | Self::Multicast2d { .. } => &[
                program.grid_x,
                program.grid_y,
                program.in0_block_w,
                program.out_subblock_h,
                program.out_subblock_w,
                program.per_core_m,
                program.per_core_n,
            ],
        };
        check_sizes(operation, "a matmul program", used)?;
        Ok(program)
    }

    fn to_bridge(self) -> ffi::MatmulProgram {
        let on_grid = |kind, CoreGrid { x, y }| ffi::MatmulProgram {
            kind,
            grid_x: x,
            grid_y: y,
            in0_block_w: 0,
            out_subblock_h: 0,
            out_subblock_w: 0,
            per_core_m: 0,
            per_core_n: 0,
            mcast_in0: false,
            transpose_mcast: false,
        };
        match self {
            Self::Auto => on_grid(ffi::MatmulProgramKind::Auto, CoreGrid { x: 0, y: 0 }),
            Self::CoreGrid(grid) => on_grid(ffi::MatmulProgramKind::CoreGrid, grid),
            Self::Multicast1d {
                grid,
                in0_block_w,
                out_subblock_h,
                out_subblock_w,
                per_core_m,
                per_core_n,
                mcast_in0,
            } => ffi::MatmulProgram {
                in0_block_w,
                out_subblock_h,
                out_subblock_w,
                per_core_m,
                per_core_n,
                mcast_in0,
                ..on_grid(ffi::MatmulProgramKind::Multicast1d, grid)
            },
            Self::Multicast2d {
                grid,
                in0_block_w,
                out_subblock_h,
                out_subblock_w,
                per_core_m,
                per_core_n,
                transpose_mcast,
            } => ffi::MatmulProgram {
                in0_block_w,
                out_subblock_h,
                out_subblock_w,
                per_core_m,
                per_core_n,
                transpose_mcast,
                ..on_grid(ffi::MatmulProgramKind::Multicast2d, grid)
            },
        }
    }
}

/// Refuses sizes of 0, by which TT-NN would divide: that ends the process.
pub(crate) fn check_sizes(operation: &'static str, what: &str, sizes: &[u32]) -> Result<()> {
    if sizes.contains(&0) {
        return Err(Error::Argument {
            operation,
            message: format!("{what} of sizes {sizes:?} has nothing in it"),
        });
    }
    Ok(())
}
