//! Tenstorrent's block floating point `bfp8_b`: 16 neighbours of a row share an exponent, each keeps a sign and seven bits.
//!
//! Bit for bit what TT-NN's host packer makes: see `tests/ttnn-mock/bfp8_reference.py`. Three of its habits show: bits
//! that the shared exponent shifts out are gone before it rounds to nearest even, a rounding that overflows sticks to the
//! largest mantissa, and subnormal numbers are zeros.
//!
//! A tile of 32 × 32 values has four faces of 16 × 16, left before right, upper before lower. Its words hold 64
//! exponents, one per row of a face, then 1024 mantissas, face by face and row by row; bytes of a word count from the low
//! end.

use super::program::{BFP8_BLOCK, TILE};

/// Words of 32 bits that a tile takes.
pub const TILE_WORDS: usize = (EXPONENTS + TILE * TILE) / 4;

/// Exponents of a tile, one byte each.
const EXPONENTS: usize = TILE * TILE / BFP8_BLOCK;
/// Rows, and columns, of a face.
const FACE: usize = TILE / 2;
/// Bits of a mantissa, the leading one included.
const MANTISSA_BITS: u32 = 7;
/// Bits of an f32 mantissa, its hidden one included, that have no place in a mantissa here.
const LOST_BITS: u32 = 24 - MANTISSA_BITS;

// Words are bytes in memory order on every machine that a board fits in.
const _: () = assert!(cfg!(target_endian = "little"));

/// Values that share an exponent.
pub(super) type Block = [f32; BFP8_BLOCK];

/// A matrix `[rows, columns]`, row after row, as whole tiles, upper before lower and left before right. Places that fill
/// tiles up hold zeros.
///
/// # Panics
/// When there are not `rows · columns` values.
pub fn encode(rows: usize, columns: usize, values: &[f32]) -> Vec<u32> {
    assert_eq!(values.len(), rows * columns, "a matrix has its rows and columns");
    let mut words = vec![0; words(rows, columns)];
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        encode_row(row, values, &mut words);
    }
    words
}

/// The values of a matrix `[rows, columns]` in tiles, row after row.
///
/// # Panics
/// When these are not the words of such a matrix.
pub fn decode(rows: usize, columns: usize, packed: &[u32]) -> Vec<f32> {
    assert_eq!(packed.len(), words(rows, columns), "a matrix has its tiles");
    let mut values = vec![0.0; rows * columns];
    for (row, values) in values.chunks_exact_mut(columns.max(1)).enumerate() {
        for (block, values) in values.chunks_mut(BFP8_BLOCK).enumerate() {
            values.copy_from_slice(&decode_block(packed, columns, row, block)[..values.len()]);
        }
    }
    values
}

/// Words of a matrix in whole tiles.
pub fn words(rows: usize, columns: usize) -> usize {
    rows.div_ceil(TILE) * columns.div_ceil(TILE) * TILE_WORDS
}

/// What is left of a row of values, from the first place of a tile on, when it is encoded and decoded.
pub(super) fn round(row: &mut [f32]) {
    for values in row.chunks_mut(BFP8_BLOCK) {
        let mut block = [0.0; BFP8_BLOCK];
        block[..values.len()].copy_from_slice(values);
        let (exponent, mantissas) = to_block(&block);
        values.copy_from_slice(&from_block(exponent, &mantissas)[..values.len()]);
    }
}

/// Writes one row of a matrix into its tiles.
#[inline(always)]
pub(super) fn encode_row(row: usize, values: &[f32], words: &mut [u32]) {
    let columns = values.len();
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    for (index, values) in values.chunks(BFP8_BLOCK).enumerate() {
        let mut block = [0.0; BFP8_BLOCK];
        block[..values.len()].copy_from_slice(values);
        let (exponent, mantissas) = to_block(&block);
        let place = Place::of(columns, row, index);
        bytes[place.exponent] = exponent;
        bytes[place.mantissas..][..BFP8_BLOCK].copy_from_slice(&mantissas);
    }
}

/// Block `index` of a row of a matrix with so many columns.
#[inline(always)]
pub(super) fn decode_block(words: &[u32], columns: usize, row: usize, index: usize) -> Block {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    let place = Place::of(columns, row, index);
    let mantissas = bytes[place.mantissas..].first_chunk().expect("a tile holds whole blocks");
    from_block(bytes[place.exponent], mantissas)
}

/// Where a block's bytes are.
struct Place {
    exponent: usize,
    mantissas: usize,
}

impl Place {
    #[inline(always)]
    fn of(columns: usize, row: usize, block: usize) -> Self {
        let tile = row / TILE * columns.div_ceil(TILE) + block / 2;
        let face = row % TILE / FACE * 2 + block % 2;
        let line = face * FACE + row % FACE;
        let start = tile * TILE_WORDS * 4;
        Self { exponent: start + line, mantissas: start + EXPONENTS + line * BFP8_BLOCK }
    }
}

#[inline(always)]
fn to_block(block: &Block) -> (u8, [u8; BFP8_BLOCK]) {
    let exponent = |x: f32| x.to_bits() >> 23 & 0xff;
    let shared = block.iter().fold(0, |most, x| most.max(exponent(*x)));
    (shared as u8, block.map(|x| to_mantissa(x.to_bits(), shared)))
}

/// Sign and mantissa of an f32 under an exponent that is at least its own.
#[inline(always)]
fn to_mantissa(bits: u32, shared: u32) -> u8 {
    let exponent = bits >> 23 & 0xff;
    let whole = (1 << 23 | bits & 0x7f_ffff) >> (shared - exponent).min(31);
    let (kept, rest) = (whole >> LOST_BITS, whole & ((1 << LOST_BITS) - 1));
    let half = 1 << (LOST_BITS - 1);
    let up = u32::from(rest > half) | u32::from(rest == half) & kept;
    let mantissa = (kept + (up & 1)).min((1 << MANTISSA_BITS) - 1);
    // Subnormal numbers have exponent 0; zero has no sign.
    let sign = bits >> 31 << MANTISSA_BITS;
    if exponent == 0 || mantissa == 0 { 0 } else { (sign | mantissa) as u8 }
}

#[inline(always)]
fn from_block(exponent: u8, mantissas: &[u8; BFP8_BLOCK]) -> Block {
    if !(MANTISSA_BITS as u8..=254).contains(&exponent) {
        return mantissas.map(|byte| from_mantissa(exponent, byte));
    }
    // 2^(exponent - 127) counts the leading bit of a mantissa, 2^6 of its units.
    let unit = f32::from_bits((u32::from(exponent) - (MANTISSA_BITS - 1)) << 23);
    mantissas.map(|byte| {
        let value = f32::from(byte & 0x7f) * unit;
        f32::from_bits(value.to_bits() | u32::from(byte >> 7) << 31)
    })
}

/// One value, bit by bit: for blocks of very small numbers, and of infinities and what is not a number.
fn from_mantissa(exponent: u8, byte: u8) -> f32 {
    let (sign, mantissa) = (u32::from(byte >> 7) << 31, byte & 0x7f);
    if mantissa == 0 {
        return f32::from_bits(sign);
    }
    let shift = mantissa.leading_zeros() - 1;
    let Some(exponent) = u32::from(exponent).checked_sub(shift) else { return 0.0 };
    let fraction = u32::from(mantissa) << (shift + 1) & 0x7f;
    f32::from_bits(sign | exponent << 23 | fraction << 16)
}

#[cfg(test)]
mod tests;
