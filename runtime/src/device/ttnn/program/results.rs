//! What a call gives, and what TT-NN would refuse: the rules of its validators that the calls of our programs can break.

use super::Refusal;
use super::op::{Op, ValueId};
use super::spec::{Dtype, Layout, Memory, TILE, TensorSpec};

/// The results of a call, in the dtype that the caller wants; shapes follow from the operation.
pub(super) fn results(
    op: &Op,
    spec: &dyn Fn(ValueId) -> TensorSpec,
    dtype: Dtype,
) -> Result<Vec<TensorSpec>, Refusal> {
    let made = |shape| Ok(vec![TensorSpec::tiles(shape, dtype)]);
    if keeps_dtype(op) {
        let first = spec(op.reads()[0]);
        require(first.dtype == dtype, "its result", format!("{}, as what it reads", first.dtype), dtype)?;
    }
    match op {
        Op::Linear { x, weight, bias, .. } => {
            let (x, weight) = (floats("x", spec(*x))?, floats("weight", spec(*weight))?);
            let [a, b, rows, inner] = x.shape;
            let columns = weight.shape[3];
            expect("weight", [1, 1, inner, columns], weight.shape)?;
            row_of("bias", bias.map(spec), columns)?;
            made([a, b, rows, columns])
        }
        Op::LayerNorm { x, weight, bias, .. } => {
            let x = floats("x", spec(*x))?;
            row_of("weight", Some(spec(*weight)), x.shape[3])?;
            row_of("bias", Some(spec(*bias)), x.shape[3])?;
            made(x.shape)
        }
        Op::RmsNorm { x, weight, .. } => {
            let x = floats("x", spec(*x))?;
            row_of("weight", weight.map(spec), x.shape[3])?;
            made(x.shape)
        }
        Op::Add { a, b } | Op::Multiply { a, b, .. } => {
            let (a, b) = (floats("a", spec(*a))?, floats("b", spec(*b))?);
            let fits = a.shape.iter().zip(b.shape).all(|(a, b)| *a == b || b == 1);
            require(fits, "b", format!("{:?}, or 1 where it is repeated", a.shape), b)?;
            made(a.shape)
        }
        Op::MultiplyScalar { x, .. } | Op::Activate { x, .. } => made(floats("x", spec(*x))?.shape),
        Op::Embedding { ids, table } => {
            let (ids, table) = (spec(*ids), spec(*table));
            let is_row =
                ids.shape[..3] == [1, 1, 1] && ids.dtype == Dtype::U32 && ids.layout == Layout::RowMajor;
            require(is_row, "ids", "[1, 1, 1, n] u32 rows".into(), ids)?;
            let is_table = table.shape[..2] == [1, 1] && table.dtype == Dtype::Bf16;
            require(
                is_table && table.layout == Layout::RowMajor,
                "table",
                "[1, 1, n, width] bf16 rows".into(),
                table,
            )?;
            whole_tiles("ids", ids.shape[3], ids)?;
            made([1, 1, ids.shape[3], table.shape[3]])
        }
        Op::Rotary { x, cos, sin } => {
            let x = floats("x", spec(*x))?;
            let [_, _, tokens, width] = x.shape;
            require(width.is_multiple_of(2 * TILE), "x", "heads whose halves are whole tiles".into(), x)?;
            for (what, table) in [("cos", cos), ("sin", sin)] {
                expect(what, [1, 1, tokens, width], floats(what, spec(*table))?.shape)?;
            }
            made(x.shape)
        }
        Op::SplitHeads { x, heads, kv_heads } => {
            let x = floats("x", spec(*x))?;
            let [a, one, tokens, columns] = x.shape;
            let width = columns / (heads + 2 * kv_heads);
            let fits = one == 1 && width * (heads + 2 * kv_heads) == columns && width.is_multiple_of(TILE);
            require(fits, "x", format!("[a, 1, tokens, ({heads} + 2 · {kv_heads}) · whole tiles]"), x)?;
            let split = |heads| made([a, heads, tokens, width]);
            Ok([split(*heads)?, split(*kv_heads)?, split(*kv_heads)?].concat())
        }
        Op::ConcatHeads { x } => {
            let x = floats("x", spec(*x))?;
            let [a, heads, tokens, width] = x.shape;
            whole_tiles("x", width, x)?;
            made([a, 1, tokens, heads * width])
        }
        Op::Attention { q, k, v, mask, q_chunk, k_chunk, .. } => {
            let (q, k) = (floats("q", spec(*q))?, floats("k", spec(*k))?);
            let [a, heads, queries, width] = q.shape;
            let [_, kv_heads, keys, _] = k.shape;
            require(heads.is_multiple_of(kv_heads.max(1)), "k", format!("a divisor of {heads} heads"), k)?;
            expect("k", [a, kv_heads, keys, width], k.shape)?;
            expect("v", k.shape, spec(*v).shape)?;
            if let Some(mask) = mask.map(spec) {
                expect("mask", [if mask.shape[0] == 1 { 1 } else { a }, 1, queries, keys], mask.shape)?;
                let lies = mask.dtype != Dtype::F32 && mask.memory == Memory::Dram;
                require(lies, "mask", "bf16 or bfp8_b in DRAM".into(), mask)?;
            }
            for (what, chunk, found) in [("q_chunk", q_chunk, q), ("k_chunk", k_chunk, k)] {
                let whole = *chunk > 0 && chunk.is_multiple_of(TILE);
                require(whole, what, format!("whole tiles, not {chunk} rows"), found)?;
            }
            for (what, part) in [("q", q), ("k", k)] {
                require(part.dtype != Dtype::F32, what, "bf16 or bfp8_b".into(), part)?;
            }
            made(q.shape)
        }
        Op::Concat { parts, dim } => {
            let first = floats("parts", spec(parts[0]))?;
            let mut shape = first.shape;
            shape[*dim] = 0;
            for part in parts {
                let part = floats("parts", spec(*part))?;
                let same = (0..4).all(|at| at == *dim || part.shape[at] == first.shape[at]);
                require(same, "parts", format!("{:?} but for dimension {dim}", first.shape), part)?;
                require(
                    *dim < 2 || part.shape[*dim].is_multiple_of(TILE),
                    "parts",
                    "whole tiles".into(),
                    part,
                )?;
                shape[*dim] += part.shape[*dim];
            }
            made(shape)
        }
        Op::Slice { x, begin, end } => {
            let x = floats("x", spec(*x))?;
            let inside = (0..4).all(|at| begin[at] < end[at] && end[at] <= x.shape[at]);
            let whole = (2..4).all(|at| begin[at].is_multiple_of(TILE));
            require(
                inside && whole,
                "begin and end",
                format!("whole tiles inside {:?}", x.shape),
                (begin, end),
            )?;
            made(std::array::from_fn(|at| end[at] - begin[at]))
        }
        Op::Copy { from, into } => {
            let (from, into) = (spec(*from), spec(*into));
            require(from.shape == into.shape && from.dtype == into.dtype, "into", from.to_string(), into)?;
            Ok(Vec::new())
        }
        Op::Send { .. } | Op::Receive { .. } => Ok(Vec::new()),
    }
}

/// Whether TT-NN gives results of the dtype of the first argument, and takes no other.
fn keeps_dtype(op: &Op) -> bool {
    matches!(
        op,
        Op::LayerNorm { .. }
            | Op::RmsNorm { .. }
            | Op::Rotary { .. }
            | Op::SplitHeads { .. }
            | Op::ConcatHeads { .. }
            | Op::Attention { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::Activate { .. }
    )
}

fn require(holds: bool, what: &str, expected: String, found: impl Found) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal { what: what.into(), expected, found: found.told() }) }
}

fn expect(what: &str, expected: [usize; 4], found: [usize; 4]) -> Result<(), Refusal> {
    require(expected == found, what, format!("{expected:?}"), found)
}

fn floats(what: &str, spec: TensorSpec) -> Result<TensorSpec, Refusal> {
    let fits = spec.dtype.is_float() && spec.layout == Layout::Tile;
    require(fits, what, "floats in tiles".into(), spec)?;
    Ok(spec)
}

fn row_of(what: &str, row: Option<TensorSpec>, width: usize) -> Result<(), Refusal> {
    match row {
        Some(row) => expect(what, [1, 1, 1, width], floats(what, row)?.shape),
        None => Ok(()),
    }
}

fn whole_tiles(what: &str, rows: usize, found: TensorSpec) -> Result<(), Refusal> {
    require(rows.is_multiple_of(TILE), what, "whole tiles".into(), found)
}

/// What an error shows.
trait Found {
    fn told(&self) -> String;
}

impl Found for TensorSpec {
    fn told(&self) -> String {
        self.to_string()
    }
}

impl Found for Dtype {
    fn told(&self) -> String {
        self.to_string()
    }
}

impl Found for [usize; 4] {
    fn told(&self) -> String {
        format!("{self:?}")
    }
}

impl Found for (&[usize; 4], &[usize; 4]) {
    fn told(&self) -> String {
        format!("{:?} to {:?}", self.0, self.1)
    }
}
