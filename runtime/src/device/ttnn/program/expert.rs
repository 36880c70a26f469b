//! The action expert as programs: π0's state token once per request, and one denoising step.

use tensact_topology::{LayerRange, ModelSizes, Variant};

use super::builder::{Builder, Numerics, Wiring};
use super::decoder::{Block, EPSILON, Projected, Rotation, bias, key_mask, product, product_from, rms_norm};
use super::op::{Activation, Compute, Op, ValueId};
use super::prefix::cache_spec;
use super::recipe::{Part, Recipe, Spread};
use super::shape::{HeadLayout, PrefixRows, StepShape, tile_rows};
use super::spec::{Dtype, TILE, TensorSpec};
use super::{Program, ProgramError};
use crate::checkpoint::names::EXPERT;

/// Rows of queries, and of keys, that a core attends with at a time.
const CHUNKS: [usize; 2] = [64, 256];
/// The same for the state token's tile.
const STATE_CHUNKS: [usize; 2] = [TILE, 256];

/// π0's state token through some blocks, behind a prefix of so many rows. Takes `state` `[1, 1, 32, state_dim]` (first
/// slice) or `hidden` `[1, 1, 32, width]`, of which the first row counts, `positions` of the rows, `keys that count`
/// `[1, 1, 1, rows + 32]`, and `keys 3`, `values 3` of each layer; gives `state keys 3`, `state values 3`
/// `[1, kv_heads, 32, head]` and, before the last layer, `hidden`.
///
/// # Errors
/// When a call would be refused.
pub fn expert_state(
    sizes: &ModelSizes,
    layers: LayerRange,
    prefix: PrefixRows,
    numerics: Numerics,
    wiring: Wiring,
) -> Result<Program, ProgramError> {
    let expert = &sizes.expert;
    let rows = prefix.count();
    let name = format!("state {layers}, {rows} rows");
    let mut b = Builder::new(name, numerics, wiring);
    b.segment("begin");
    let mut hidden = if layers.start() == 0 {
        let state = TensorSpec::tiles([1, 1, TILE, sizes.state_dim], Dtype::F32);
        let state = b.input("state", state)?;
        edge(&mut b, state, "state_proj", [sizes.state_dim, expert.width], Dtype::Bf16)?
    } else {
        b.input("hidden", TensorSpec::tiles([1, 1, TILE, expert.width], Dtype::Bf16))?
    };
    let rotation = Rotation::lookup(&mut b, HeadLayout::of_decoder(expert), TILE, tile_rows(rows + 1))?;
    let mask = key_mask(&mut b, "keys that count", TILE, rows + TILE)?;
    for layer in layers.iter() {
        b.segment(format!("layer {layer}"));
        let block = Block { sizes: expert, name: format!("{EXPERT}.layers.{layer}") };
        let normed = rms_norm(&mut b, &block.layer("input_layernorm"), hidden)?;
        let last = layer + 1 == expert.layers;
        let (q, k, v) = if last {
            let [k, v] = block.keys_values(&mut b, normed, rotation)?;
            (None, k, v)
        } else {
            let Projected { q, k, v } = block.project(&mut b, normed, rotation)?;
            (Some(q), k, v)
        };
        b.output(format!("state keys {layer}"), k)?;
        b.output(format!("state values {layer}"), v)?;
        // Nothing reads what the last block would make of the state token.
        let Some(q) = q else { continue };
        let [keys, values] = [("keys", k), ("values", v)].map(|(what, own)| {
            let cached = b.input(format!("{what} {layer}"), cache_spec(expert, rows))?;
            b.concat(vec![cached, own], 2)
        });
        let attended = block.attend(&mut b, (q, keys?, values?), mask, STATE_CHUNKS)?;
        let out = block.output(&mut b, attended)?;
        hidden = b.add(hidden, out)?;
        let normed = rms_norm(&mut b, &block.layer("post_attention_layernorm"), hidden)?;
        let out = block.mlp(&mut b, normed)?;
        hidden = b.add(hidden, out)?;
    }
    if layers.end() < expert.layers {
        b.output("hidden", hidden)?;
    }
    Ok(b.finish())
}

/// One denoising step of some requests, each at its own step. With `r` rows for the actions of a request (the horizon in
/// whole tiles) and `n` for all requests, takes `actions` `[1, 1, n, action_dim]` in f32 (first slice) or `hidden of 0` …
/// `[1, 1, r, width]`; `positions` and `steps` of all rows; for each request `keys that count of 0`
/// `[1, 1, 1, keys]`, where keys are those of the prefix, 32 for π0's state token, and `r`; and for each layer and request
/// `keys 3 of 0`, `values 3 of 0`, and for π0 `state keys 3 of 0`, `state values 3 of 0`. Gives `hidden of 0` …, or
/// `velocity` `[1, 1, n, action_dim]` in f32 (last slice). The only slice of its stage also has a segment `advance`, which takes the
/// Euler step in f32 and leaves the result in `actions`.
///
/// # Errors
/// When a call would be refused.
pub fn expert_step(
    sizes: &ModelSizes,
    layers: LayerRange,
    shape: StepShape,
    numerics: Numerics,
    wiring: Wiring,
) -> Result<Program, ProgramError> {
    let StepShape { requests, prefix, steps } = shape;
    let name = format!("step {layers}, {requests} requests, {} rows, {steps} steps", prefix.count());
    let mut b = Builder::new(name, numerics, wiring);
    let step = Denoising { sizes, shape, rows: tile_rows(sizes.horizon) };
    step.build(&mut b, layers)?;
    Ok(b.finish())
}

struct Denoising<'a> {
    sizes: &'a ModelSizes,
    shape: StepShape,
    /// Rows that the actions of one request take.
    rows: usize,
}

/// What the blocks of a step share.
struct Shared {
    rotation: Rotation,
    /// One mask per request.
    masks: Vec<ValueId>,
    /// The step of each row, where time steers norms.
    steps: Option<ValueId>,
}

impl Denoising<'_> {
    fn all_rows(&self) -> usize {
        self.shape.requests * self.rows
    }

    fn keys(&self) -> usize {
        self.shape.prefix.count() + self.state_rows() + self.rows
    }

    fn state_rows(&self) -> usize {
        if self.sizes.variant == Variant::Pi0 { TILE } else { 0 }
    }

    fn build(&self, b: &mut Builder, layers: LayerRange) -> Result<(), ProgramError> {
        let ModelSizes { expert, variant, horizon, .. } = self.sizes;
        b.segment("begin");
        let steers = *variant == Variant::Pi05 || layers.start() == 0;
        let steps = match steers {
            true => Some(b.input("steps", TensorSpec::rows([1, 1, 1, self.all_rows()], Dtype::U32))?),
            false => None,
        };
        let (actions, mut hidden) = self.embed(b, layers, steps)?;
        let positions = tile_rows(self.shape.prefix.count() + 1 + horizon);
        let rotation = Rotation::lookup(b, HeadLayout::of_decoder(expert), self.all_rows(), positions)?;
        let masks = (0..self.shape.requests)
            .map(|request| key_mask(b, &format!("keys that count of {request}"), self.rows, self.keys()))
            .collect::<Result<_, _>>()?;
        let shared = Shared { rotation, masks, steps: steps.filter(|_| *variant == Variant::Pi05) };
        for layer in layers.iter() {
            b.segment(format!("layer {layer}"));
            hidden = self.block(b, layer, hidden, &shared)?;
        }
        if layers.end() < expert.layers {
            for request in 0..self.shape.requests {
                let own = b.cut(hidden, 2, request * self.rows..(request + 1) * self.rows)?;
                b.output(format!("hidden of {request}"), own)?;
            }
            return Ok(());
        }
        b.segment("end");
        let (normed, _) = self.norm(b, &format!("{EXPERT}.norm"), hidden, &shared)?;
        let sizes = [expert.width, self.sizes.action_dim];
        let velocity = edge(b, normed, "action_out_proj", sizes, Dtype::F32)?;
        b.output("velocity", velocity)?;
        match actions {
            Some(actions) => self.advance(b, actions, velocity),
            None => Ok(()),
        }
    }

    /// Actions, where this slice has them, and action tokens.
    fn embed(
        &self,
        b: &mut Builder,
        layers: LayerRange,
        steps: Option<ValueId>,
    ) -> Result<(Option<ValueId>, ValueId), ProgramError> {
        let ModelSizes { expert, action_dim, variant, .. } = self.sizes;
        let (rows, width) = (self.all_rows(), expert.width);
        if layers.start() > 0 {
            let spec = TensorSpec::tiles([1, 1, self.rows, width], Dtype::Bf16);
            let parts = (0..self.shape.requests).map(|request| b.input(format!("hidden of {request}"), spec));
            let parts = parts.collect::<Result<_, _>>()?;
            return Ok((None, b.concat(parts, 2)?));
        }
        let actions = b.input("actions", TensorSpec::tiles([1, 1, rows, *action_dim], Dtype::F32))?;
        let tokens = edge(b, actions, "action_in_proj", [*action_dim, width], Dtype::Bf16)?;
        let (Variant::Pi0, Some(ids)) = (variant, steps) else { return Ok((Some(actions), tokens)) };
        let parts = vec![Part::new("action_time_mlp_in", Spread::dense(width))];
        let mlp_in = product_from(b, parts, Spread::dense(width), 0);
        let mixed = b.linear(tokens, (mlp_in, None), None)?;
        let table = TensorSpec::rows([1, 1, self.shape.steps, width], Dtype::Bf16);
        let recipe = Recipe::MixedTime { steps: self.shape.steps };
        let table = b.weight(format!("time of {} steps", self.shape.steps), table, recipe);
        let time = b.one(Op::Embedding { ids, table })?;
        let mixed = b.add(mixed, time)?;
        let mixed = b.one(Op::Activate { x: mixed, activation: Activation::Silu })?;
        let parts = vec![Part::new("action_time_mlp_out", Spread::dense(width))];
        let mlp_out = (product(b, parts.clone(), Spread::dense(width)), Some(bias(b, parts)));
        Ok((Some(actions), b.linear(mixed, mlp_out, None)?))
    }

    fn block(
        &self,
        b: &mut Builder,
        layer: usize,
        hidden: ValueId,
        shared: &Shared,
    ) -> Result<ValueId, ProgramError> {
        let block = Block { sizes: &self.sizes.expert, name: format!("{EXPERT}.layers.{layer}") };
        let (normed, gate) = self.norm(b, &block.layer("input_layernorm"), hidden, shared)?;
        let projected = block.project(b, normed, shared.rotation)?;
        let mut attended = Vec::new();
        for (request, mask) in shared.masks.iter().enumerate() {
            let own = request * self.rows..(request + 1) * self.rows;
            let q = b.cut(projected.q, 2, own.clone())?;
            let k = b.cut(projected.k, 2, own.clone())?;
            let v = b.cut(projected.v, 2, own)?;
            let keys = self.behind_cache(b, "keys", layer, request, k)?;
            let values = self.behind_cache(b, "values", layer, request, v)?;
            attended.push(block.attend(b, (q, keys, values), *mask, CHUNKS)?);
        }
        let attended = b.concat(attended, 2)?;
        let out = block.output(b, attended)?;
        let hidden = residual(b, hidden, out, gate)?;
        let (normed, gate) = self.norm(b, &block.layer("post_attention_layernorm"), hidden, shared)?;
        let out = block.mlp(b, normed)?;
        residual(b, hidden, out, gate)
    }

    /// Keys, or values, of the prefix, of π0's state token, and of a request's actions, one behind the other.
    fn behind_cache(
        &self,
        b: &mut Builder,
        what: &str,
        layer: usize,
        request: usize,
        own: ValueId,
    ) -> Result<ValueId, ProgramError> {
        let expert = &self.sizes.expert;
        let prefix = cache_spec(expert, self.shape.prefix.count());
        let mut parts = vec![b.input(format!("{what} {layer} of {request}"), prefix)?];
        if self.state_rows() > 0 {
            let state = cache_spec(expert, self.state_rows());
            parts.push(b.input(format!("state {what} {layer} of {request}"), state)?);
        }
        parts.push(own);
        b.concat(parts, 2)
    }

    /// Normalised rows, and the gate of the sublayer behind them where time steers norms.
    fn norm(
        &self,
        b: &mut Builder,
        norm: &str,
        x: ValueId,
        shared: &Shared,
    ) -> Result<(ValueId, Option<ValueId>), ProgramError> {
        let Some(ids) = shared.steps else { return Ok((rms_norm(b, norm, x)?, None)) };
        let (steps, width) = (self.shape.steps, self.sizes.expert.width);
        let table = TensorSpec::rows([1, 1, steps, 3 * width], Dtype::Bf16);
        let recipe = Recipe::Modulation { norm: norm.into(), steps };
        let table = b.weight(format!("{norm} at {steps} steps"), table, recipe);
        let rows = b.one(Op::Embedding { ids, table })?;
        let scale = b.cut(rows, 3, 0..width)?;
        let shift = b.cut(rows, 3, width..2 * width)?;
        let gate = b.cut(rows, 3, 2 * width..3 * width)?;
        let normed = b.one(Op::RmsNorm { x, weight: None, epsilon: EPSILON, compute: Compute::EXACT })?;
        let scaled = b.one(Op::Multiply { a: normed, b: scale, activation: None })?;
        Ok((b.add(scaled, shift)?, Some(gate)))
    }

    /// The Euler step, in f32.
    fn advance(&self, b: &mut Builder, actions: ValueId, velocity: ValueId) -> Result<(), ProgramError> {
        b.segment("advance");
        let value = (-1.0 / self.shape.steps as f64) as f32;
        let change = b.call(Op::MultiplyScalar { x: velocity, value }, Dtype::F32)?[0];
        let next = b.call(Op::Add { a: actions, b: change }, Dtype::F32)?[0];
        b.call(Op::Copy { from: next, into: actions }, Dtype::F32)?;
        Ok(())
    }
}

/// `hidden + gate · out`.
fn residual(
    b: &mut Builder,
    hidden: ValueId,
    out: ValueId,
    gate: Option<ValueId>,
) -> Result<ValueId, ProgramError> {
    let out = match gate {
        Some(gate) => b.one(Op::Multiply { a: out, b: gate, activation: None })?,
        None => out,
    };
    b.add(hidden, out)
}

/// One of the small projections at the model's edges, whose weights stay f32 as on the host.
fn edge(
    b: &mut Builder,
    x: ValueId,
    layer: &str,
    [inputs, outputs]: [usize; 2],
    dtype: Dtype,
) -> Result<ValueId, ProgramError> {
    let parts = vec![Part::new(layer, Spread::dense(outputs))];
    let spec = TensorSpec::tiles([1, 1, inputs, outputs], Dtype::F32);
    let recipe = Recipe::Product { parts: parts.clone(), inputs: Spread::dense(inputs), first_input: 0 };
    let weight = b.weight(format!("{layer}.weight"), spec, recipe);
    let bias = b.weight(
        format!("{layer}.bias"),
        TensorSpec::tiles([1, 1, 1, outputs], Dtype::F32),
        Recipe::Bias { parts },
    );
    let op = Op::Linear { x, weight, bias: Some(bias), activation: None, compute: Compute::EXACT };
    Ok(b.call(op, dtype)?[0])
}
