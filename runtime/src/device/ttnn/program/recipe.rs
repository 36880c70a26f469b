//! How the weights of a program are made from a checkpoint: names, order and padding, without values.

/// Where the values of a dimension stand when groups of them are padded: heads, or halves of heads, become whole tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spread {
    /// Groups, one behind the other.
    pub groups: usize,
    /// Values of a group.
    pub len: usize,
    /// Places that a group takes; the last ones hold zeros.
    pub padded: usize,
}

impl Spread {
    /// As many places as values.
    pub fn dense(len: usize) -> Self {
        Self { groups: 1, len, padded: len }
    }

    /// Zeros behind all values, up to a multiple of `unit`.
    pub fn aligned(len: usize, unit: usize) -> Self {
        Self { groups: 1, len, padded: len.next_multiple_of(unit) }
    }

    /// Values without padding.
    pub fn values(self) -> usize {
        self.groups * self.len
    }

    /// Places with padding.
    pub fn places(self) -> usize {
        self.groups * self.padded
    }

    /// The place of each value.
    pub fn places_of_values(self) -> impl Iterator<Item = usize> {
        (0..self.groups).flat_map(move |group| (0..self.len).map(move |i| group * self.padded + i))
    }
}

/// A linear layer of the checkpoint inside a fused one.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The layer, without `.weight` or `.bias`.
    pub layer: String,
    /// Where its outputs stand.
    pub outputs: Spread,
    /// What its outputs are multiplied by: 1, but for the scale of attention scores in queries.
    pub factor: f32,
}

impl Part {
    /// A layer as it is.
    pub fn new(layer: impl Into<String>, outputs: Spread) -> Self {
        Self { layer: layer.into(), outputs, factor: 1.0 }
    }
}

/// How a weight is made. Shapes follow from it; all are padded to four dimensions with ones in front.
#[derive(Debug, Clone, PartialEq)]
pub enum Recipe {
    /// Linear layers side by side, transposed to `[inputs, outputs]`.
    Product {
        /// First outputs first.
        parts: Vec<Part>,
        /// Where inputs stand.
        inputs: Spread,
        /// The first of the checkpoint's input columns that are used; the number of them is that of `inputs`.
        first_input: usize,
    },
    /// Their biases, `[1, outputs]`.
    Bias {
        /// First outputs first.
        parts: Vec<Part>,
    },
    /// A vector of the checkpoint as it is, `[1, width]`.
    Vector {
        /// Its full name.
        tensor: String,
    },
    /// Gemma's norm scale `1 + w`, `[1, width]`.
    NormScale {
        /// The norm, without `.weight`.
        norm: String,
    },
    /// The token table times a factor, which is rounded to bf16 as the peers do.
    TokenTable {
        /// Root of the width.
        factor: f32,
    },
    /// The vision tower's position table, resized to this many patches a side, with zeros behind it, `[rows, width]`.
    Positions {
        /// Patches a side.
        grid: usize,
        /// Rows with padding.
        rows: usize,
    },
    /// 0 for the first `valid` columns, −∞ for the rest, in every row.
    KeyMask {
        /// Columns that count.
        valid: usize,
        /// Rows and columns.
        side: usize,
    },
    /// Zeros.
    Zeros {
        /// The last two dimensions.
        shape: [usize; 2],
    },
    /// Cosines of the rotary embedding for positions from 0, in the places of a head, `[positions, places]`.
    Cosines {
        /// Rows.
        positions: usize,
        /// Where a head's values stand.
        head: Spread,
    },
    /// Sines, likewise.
    Sines {
        /// Rows.
        positions: usize,
        /// Where a head's values stand.
        head: Spread,
    },
    /// π0: the time's share of `action_time_mlp_in`, bias included, for each of so many steps.
    MixedTime {
        /// Denoising steps.
        steps: usize,
    },
    /// π0.5: `1 + scale`, shift and gate of an adaptive norm side by side, for each of so many steps.
    Modulation {
        /// The norm, without `.dense`.
        norm: String,
        /// Denoising steps.
        steps: usize,
    },
}
