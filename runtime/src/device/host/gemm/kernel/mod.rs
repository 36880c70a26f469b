//! The innermost loops: some rows times some lines, on the instructions of a CPU.
//!
//! Both operands are made of 32-bit words. A word holds one value of the inner dimension (f32) or two neighbouring ones
//! (bf16); a line holds one word of [`LANES`] columns. A kernel steps over words, and at each one multiplies a word of
//! every row with every lane of the lines.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// Columns of a line: the f32 values of an AVX-512 register, and of a cache line.
pub(in crate::device::host) const LANES: usize = 16;

/// Most lines that stand side by side at one word: with nine rows they fill 27 of 32 registers with sums.
pub(super) const UNITS: usize = 3;

/// Words of a chunk, and distance between its rows: a panel of this depth takes 24 KB and leaves a first-level cache of 32
/// or 48 room for rows. A constant, so that a kernel reaches all its rows from one address. Even, so that chunks of f32 words
/// start at whole pairs of bf16.
pub(in crate::device::host) const CHUNK: usize = 128;

/// What a word holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) enum Words {
    /// One f32.
    Single,
    /// Two bf16, the one of the smaller index in the lower half.
    Pair,
}

impl Words {
    /// Values in a word.
    pub(in crate::device::host) fn values(self) -> usize {
        match self {
            Words::Single => 1,
            Words::Pair => 2,
        }
    }

    /// Words of that many values.
    pub(in crate::device::host) fn depth(self, values: usize) -> usize {
        values.div_ceil(self.values())
    }
}

/// One step of a product: every row times every column, added to what was there unless it is `fresh`.
pub(in crate::device::host) struct Tile<'a> {
    /// Word `k` of row `r` at `r · CHUNK + k`.
    pub(super) x: &'a [u32],
    /// Word `k` of column `c` at `(k · units + c / LANES) · LANES + c % LANES`.
    pub(super) lines: &'a [u32],
    /// Rows, at most [`Kernel::rows`].
    pub(super) rows: usize,
    /// Lines side by side, at most [`UNITS`].
    pub(super) units: usize,
    /// Words, at most [`CHUNK`].
    pub(super) depth: usize,
    /// Sum of row `r` and column `c` at `r · width + c`.
    pub(super) sums: &'a mut [f32],
    /// Distance between rows of `sums`.
    pub(super) width: usize,
    /// Whether sums start at zero, whatever is there.
    pub(super) fresh: bool,
    /// What will be read next, brought nearer meanwhile.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only AVX-512 fetches ahead
    pub(super) ahead: Ahead<'a>,
}

impl Tile<'_> {
    /// Whether every access of a kernel lies within the slices.
    fn is_sound(&self) -> bool {
        self.rows > 0
            && (1..=UNITS).contains(&self.units)
            && self.width >= self.units * LANES
            && self.depth <= CHUNK
            && self.x.len() >= (self.rows - 1) * CHUNK + self.depth
            && self.lines.len() >= self.depth * self.units * LANES
            && self.sums.len()
                >= (self.rows - 1).saturating_mul(self.width).saturating_add(self.units * LANES)
    }
}

/// Memory to bring nearer, cache line by cache line.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(in crate::device::host) struct Ahead<'a> {
    /// A part of the next panel, one line at every second word of a tile: to the second-level cache.
    pub(super) lines: &'a [u32],
    /// The rows of the next tile, one line at every word: to the first-level cache.
    pub(super) rows: &'a [u32],
}

/// The instructions that products run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Plain Rust, for every CPU.
    Portable,
    /// 256-bit vectors and fused multiply-add.
    Avx2,
    /// 512-bit vectors; bf16 factors are widened to f32.
    Avx512,
    /// 512-bit vectors, and dot products of bf16 pairs.
    Avx512Bf16,
    /// 128-bit vectors of ARM.
    Neon,
}

impl Kernel {
    /// All that this CPU can run, the slowest first.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Neon]
            .into_iter()
            .filter(|kernel| kernel.runs_here())
            .collect()
    }

    /// The fastest of this CPU.
    ///
    /// AMD's CPUs (from Zen 4 on) compute bf16 dot products at twice the rate of f32 multiply-adds (measured on Zen 5).
    /// Intel's do at half that rate (measured on Emerald Rapids), so there f32 is the faster way and, with exact
    /// products, the better one.
    pub fn fastest() -> Self {
        let fast = |kernel: &Self| *kernel != Self::Avx512Bf16 || has_fast_dot_products();
        Self::available().into_iter().rfind(fast).unwrap_or(Self::Portable)
    }

    fn runs_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => std::arch::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.runs_here() && std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns)] // which ones are left depends on the CPU
            _ => false,
        }
    }

    /// Rows that a tile has at most.
    pub(super) fn rows(self) -> usize {
        match self {
            Self::Avx512 | Self::Avx512Bf16 => 9,
            Self::Portable | Self::Avx2 | Self::Neon => 6,
        }
    }

    /// What the words of products of bf16 hold.
    pub(in crate::device::host) fn words_of_bf16(self) -> Words {
        if self == Self::Avx512Bf16 { Words::Pair } else { Words::Single }
    }

    /// Runs a tile. The kernel is that of a device, whose constructor has seen to it that this CPU has the instructions.
    ///
    /// # Panics
    /// When a slice of the tile is too short, or words are pairs and the kernel has no dot products.
    #[inline]
    pub(super) fn run(self, words: Words, tile: Tile<'_>) {
        debug_assert!(self.runs_here(), "a device has no kernel that its CPU cannot run");
        assert!(tile.rows <= self.rows() && tile.is_sound(), "a tile that its slices do not hold");
        match (self, words) {
            (Self::Portable, Words::Single) => portable::multiply_add(tile),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Words::Single) => avx2::multiply_add(tile),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512 | Self::Avx512Bf16, Words::Single) => avx512::multiply_add(tile),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512Bf16, Words::Pair) => avx512::dot_pairs(tile),
            #[cfg(target_arch = "aarch64")]
            (Self::Neon, Words::Single) => neon::multiply_add(tile),
            _ => unreachable!("rows are made of words that the kernel of their device takes"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_fast_dot_products() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
    name == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn has_fast_dot_products() -> bool {
    false
}
