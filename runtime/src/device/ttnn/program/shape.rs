//! The shapes that programs are built for: requests are padded to a few of them, so that a new instruction does not mean
//! a new program.

use tensact_topology::DecoderSizes;

use super::recipe::Spread;
use super::spec::TILE;

/// Where the values of an attention head stand: TT-NN works on whole tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// One head.
    pub head: Spread,
}

impl HeadLayout {
    /// Heads of which nothing is rotated: zeros behind each.
    pub fn plain(width: usize) -> Self {
        Self { head: Spread::aligned(width, TILE) }
    }

    /// Heads whose halves are rotated with each other: zeros behind each half.
    pub fn halves(width: usize) -> Self {
        let half = width / 2;
        Self { head: Spread { groups: 2, len: half, padded: half.next_multiple_of(TILE) } }
    }

    /// Heads of the VLM or the expert.
    pub fn of_decoder(sizes: &DecoderSizes) -> Self {
        Self::halves(sizes.head_dim)
    }

    /// Heads side by side.
    pub fn of_heads(self, heads: usize) -> Spread {
        Spread { groups: heads * self.head.groups, ..self.head }
    }

    /// Places that a head takes.
    pub fn places(self) -> usize {
        self.head.places()
    }
}

/// Rows of a prefix on a chip. Lengths are rounded up to multiples of [`PrefixRows::STEP`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixRows(usize);

impl PrefixRows {
    /// Rows between one length and the next.
    pub const STEP: usize = 64;

    /// The smallest that holds so many tokens.
    pub fn holding(tokens: usize) -> Self {
        Self(tokens.max(1).next_multiple_of(Self::STEP))
    }

    /// The number.
    pub fn count(self) -> usize {
        self.0
    }
}

/// A denoising step on a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepShape {
    /// Requests in one pass.
    pub requests: usize,
    /// Rows of each one's prefix.
    pub prefix: PrefixRows,
    /// Denoising steps that an integration has.
    pub steps: usize,
}

/// Rows that so many tokens take as whole tiles.
pub(super) fn tile_rows(tokens: usize) -> usize {
    tokens.next_multiple_of(TILE)
}
