//! The policies once more, as plainly as they can be written: f64, one loop per sum, everything padded and masked,
//! nothing left out and nothing kept from one step to the next. The truth for the exact savings.

use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::checkpoint::names::{EXPERT, PROJECTOR, TOKEN_TABLE, VISION, VLM};
use tensact_runtime::policy::Sample;
use tensact_topology::{DecoderSizes, Variant};

/// Rows of equal length.
pub type Rows = Vec<Vec<f64>>;

/// What a sample becomes.
pub struct Plain {
    /// Which tokens of the padded prefix are valid.
    pub valid: Vec<bool>,
    /// Keys and values of each VLM layer, for every token of the padded prefix.
    pub cache: Vec<(Rows, Rows)>,
    /// Velocity at each step.
    pub velocities: Vec<Rows>,
    /// The chunk.
    pub actions: Rows,
}

/// Computes a sample; absent cameras are images of -1, the instruction is padded with token 0 to the policy's length.
pub fn plain(checkpoint: &Checkpoint, sample: &Sample) -> Plain {
    let model = Model { checkpoint };
    let sizes = checkpoint.sizes();
    let patches = sizes.vision.patches();
    let (mut prefix, mut valid) = (Rows::new(), Vec::new());
    let side = sizes.vision.image;
    for image in &sample.input.images {
        let absent = vec![-1.0; 3 * side * side];
        let pixels = image.as_ref().map_or(&absent[..], |image| image.data());
        prefix.extend(model.vision(pixels));
        valid.extend(vec![image.is_some(); patches]);
    }
    let table = model.matrix(TOKEN_TABLE);
    let root = (sizes.vlm.width as f64).sqrt();
    for i in 0..sizes.prompt_tokens {
        let token = sample.input.tokens.get(i).copied().unwrap_or(0) as usize;
        prefix.push(table[token].iter().map(|x| x * root).collect());
        valid.push(i < sample.input.tokens.len());
    }
    let (cache, positions) = model.prefix(prefix, &valid);

    let next = positions.last().map_or(0, |last| last + 1);
    let mut x: Rows = (0..sizes.horizon)
        .map(|row| sample.noise.row(row).iter().map(|value| f64::from(*value)).collect())
        .collect();
    let mut velocities = Vec::new();
    let count = sample.steps.count();
    for step in 0..count {
        let time = 1.0 - step as f64 / count as f64;
        let v = model.velocity(&x, time, &sample.input.state, &cache, &valid, next);
        for (x, v) in x.iter_mut().zip(&v) {
            x.iter_mut().zip(v).for_each(|(x, v)| *x -= v / count as f64);
        }
        velocities.push(v);
    }
    Plain { valid, cache, velocities, actions: x }
}

struct Model<'a> {
    checkpoint: &'a Checkpoint,
}

impl Model<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        self.checkpoint.tensor(name).to_f32().into_iter().map(f64::from).collect()
    }

    fn matrix(&self, name: &str) -> Rows {
        let values = self.vector(name);
        let rows = self.checkpoint.tensor(name).shape()[0];
        values.chunks(values.len() / rows).map(<[f64]>::to_vec).collect()
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let weight = self.matrix(&format!("{name}.weight"));
        x.iter().map(|x| weight.iter().map(|w| dot(w, x)).collect()).collect()
    }

    fn affine(&self, x: &Rows, name: &str) -> Rows {
        let bias = self.vector(&format!("{name}.bias"));
        let mut y = self.linear(x, name);
        y.iter_mut().for_each(|y| y.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
        y
    }

    fn layer_norm(&self, x: &Rows, name: &str) -> Rows {
        let (w, b) = (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        let norm = |x: &Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            x.iter()
                .zip(&w)
                .zip(&b)
                .map(|((x, w), b)| (x - mean) / (variance + 1e-6).sqrt() * w + b)
                .collect()
        };
        x.iter().map(norm).collect()
    }

    fn vision(&self, pixels: &[f32]) -> Rows {
        let v = &self.checkpoint.sizes().vision;
        let grid = v.image / v.patch;
        let pixel = |channel, y, x| f64::from(pixels[(channel * v.image + y) * v.image + x]);
        let mut patches = Rows::new();
        for (down, across) in (0..grid).flat_map(|down| (0..grid).map(move |across| (down, across))) {
            let mut patch = Vec::new();
            for channel in 0..3 {
                for y in 0..v.patch {
                    patch.extend(
                        (0..v.patch).map(|x| pixel(channel, down * v.patch + y, across * v.patch + x)),
                    );
                }
            }
            patches.push(patch);
        }
        let mut x = self.affine(&patches, &format!("{VISION}.embeddings.patch_embedding"));
        add(&mut x, &self.matrix(&format!("{VISION}.embeddings.position_embedding.weight")));
        let everyone = vec![vec![true; x.len()]; x.len()];
        for layer in 0..v.layers {
            let name = |part: &str| format!("{VISION}.encoder.layers.{layer}.{part}");
            let normed = self.layer_norm(&x, &name("layer_norm1"));
            let [q, k, v] =
                ["q", "k", "v"].map(|p| self.affine(&normed, &name(&format!("self_attn.{p}_proj"))));
            let heads = self.checkpoint.sizes().vision.heads;
            add(
                &mut x,
                &self.affine(&attention(&q, &k, &v, heads, heads, &everyone), &name("self_attn.out_proj")),
            );
            let mut inner = self.affine(&self.layer_norm(&x, &name("layer_norm2")), &name("mlp.fc1"));
            inner.iter_mut().flatten().for_each(|x| *x = gelu(*x));
            add(&mut x, &self.affine(&inner, &name("mlp.fc2")));
        }
        self.affine(&self.layer_norm(&x, &format!("{VISION}.post_layernorm")), PROJECTOR)
    }

    /// The cache of all layers, and the position of every token.
    fn prefix(&self, mut x: Rows, valid: &[bool]) -> (Vec<(Rows, Rows)>, Vec<usize>) {
        let sizes = self.checkpoint.sizes().vlm;
        let mut seen = 0;
        let positions: Vec<usize> = (valid.iter())
            .map(|valid| {
                seen += usize::from(*valid);
                seen.saturating_sub(1)
            })
            .collect();
        let mask: Vec<Vec<bool>> =
            valid.iter().map(|query| valid.iter().map(|key| *query && *key).collect()).collect();
        let mut cache = Vec::new();
        for layer in 0..sizes.layers {
            let name = format!("{VLM}.layers.{layer}");
            let scale = |norm: &str| self.plain_norm(&format!("{name}.{norm}"), x.len());
            let norms = [scale("input_layernorm"), scale("post_attention_layernorm")];
            let (k, v) = self.block(&mut x, &name, &sizes, &norms, &positions, &mask, None);
            cache.push((k, v));
        }
        (cache, positions)
    }

    fn velocity(
        &self,
        actions: &Rows,
        time: f64,
        state: &[f32],
        cache: &[(Rows, Rows)],
        valid: &[bool],
        next: usize,
    ) -> Rows {
        let sizes = self.checkpoint.sizes();
        let embedded = self.embed_time(time);
        let (mut x, condition) = match sizes.variant {
            Variant::Pi0 => {
                let state: Vec<f64> = state.iter().map(|value| f64::from(*value)).collect();
                let mut x = self.affine(&vec![state], "state_proj");
                let mut tokens = self.affine(actions, "action_in_proj");
                tokens.iter_mut().for_each(|token| token.extend(&embedded));
                let mut mixed = self.affine(&tokens, "action_time_mlp_in");
                mixed.iter_mut().flatten().for_each(|x| *x = silu(*x));
                x.extend(self.affine(&mixed, "action_time_mlp_out"));
                (x, None)
            }
            Variant::Pi05 => {
                let mut condition = vec![embedded];
                for mlp in ["time_mlp_in", "time_mlp_out"] {
                    condition = self.affine(&condition, mlp);
                    condition.iter_mut().flatten().for_each(|x| *x = silu(*x));
                }
                (self.affine(actions, "action_in_proj"), Some(condition))
            }
        };
        let states = x.len() - actions.len();
        let sees = |query: usize, key: usize| query >= states || key < states;
        let mask: Vec<Vec<bool>> = (0..x.len())
            .map(|query| valid.iter().copied().chain((0..x.len()).map(|key| sees(query, key))).collect())
            .collect();
        let positions: Vec<usize> = (0..x.len()).map(|i| next + i).collect();
        let norm = |name: &str, rows| match &condition {
            None => self.plain_norm(name, rows),
            Some(condition) => self.adaptive_norm(name, condition, rows),
        };
        for (layer, cached) in cache.iter().enumerate() {
            let name = format!("{EXPERT}.layers.{layer}");
            let norms = [
                norm(&format!("{name}.input_layernorm"), x.len()),
                norm(&format!("{name}.post_attention_layernorm"), x.len()),
            ];
            self.block(&mut x, &name, &sizes.expert, &norms, &positions, &mask, Some(cached));
        }
        let last = norm(&format!("{EXPERT}.norm"), x.len()).apply(&x);
        self.affine(&last[states..].to_vec(), "action_out_proj")
    }

    fn embed_time(&self, time: f64) -> Vec<f64> {
        let half = self.checkpoint.sizes().expert.width / 2;
        let angle = |i: usize| {
            let period = 0.004 * (4.0f64 / 0.004).powf(i as f64 / (half - 1) as f64);
            std::f64::consts::TAU * time / period
        };
        (0..half).map(|i| angle(i).sin()).chain((0..half).map(|i| angle(i).cos())).collect()
    }

    fn plain_norm(&self, name: &str, rows: usize) -> Norm {
        let scale: Vec<f64> = self.vector(&format!("{name}.weight")).iter().map(|w| 1.0 + w).collect();
        let width = scale.len();
        Norm { scale, shift: vec![0.0; width], gate: vec![1.0; width], rows }
    }

    fn adaptive_norm(&self, name: &str, condition: &Rows, rows: usize) -> Norm {
        let dense = self.affine(condition, &format!("{name}.dense")).remove(0);
        let width = dense.len() / 3;
        Norm {
            scale: dense[..width].iter().map(|scale| 1.0 + scale).collect(),
            shift: dense[width..2 * width].to_vec(),
            gate: dense[2 * width..].to_vec(),
            rows,
        }
    }

    /// A whole Gemma block; gives its own keys and values.
    #[allow(clippy::too_many_arguments)] // as flat as the formula
    fn block(
        &self,
        x: &mut Rows,
        name: &str,
        sizes: &DecoderSizes,
        norms: &[Norm; 2],
        positions: &[usize],
        mask: &[Vec<bool>],
        cached: Option<&(Rows, Rows)>,
    ) -> (Rows, Rows) {
        let normed = norms[0].apply(x);
        let project = |part: &str| self.linear(&normed, &format!("{name}.self_attn.{part}_proj"));
        let (mut q, mut k, v) = (project("q"), project("k"), project("v"));
        rotate(&mut q, positions, sizes.head_dim);
        rotate(&mut k, positions, sizes.head_dim);
        let (keys, values) = match cached {
            None => (k.clone(), v.clone()),
            Some((keys, values)) => ([&keys[..], &k].concat(), [&values[..], &v].concat()),
        };
        let attended = attention(&q, &keys, &values, sizes.heads, sizes.kv_heads, mask);
        norms[0].residual(x, &self.linear(&attended, &format!("{name}.self_attn.o_proj")));
        let normed = norms[1].apply(x);
        let mut inner = self.linear(&normed, &format!("{name}.mlp.gate_proj"));
        let up = self.linear(&normed, &format!("{name}.mlp.up_proj"));
        for (gate, up) in inner.iter_mut().flatten().zip(up.iter().flatten()) {
            *gate = gelu(*gate) * up;
        }
        norms[1].residual(x, &self.linear(&inner, &format!("{name}.mlp.down_proj")));
        (k, v)
    }
}

struct Norm {
    scale: Vec<f64>,
    shift: Vec<f64>,
    gate: Vec<f64>,
    rows: usize,
}

impl Norm {
    fn apply(&self, x: &Rows) -> Rows {
        assert_eq!(x.len(), self.rows);
        let norm = |x: &Vec<f64>| {
            let root = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-6).sqrt();
            (x.iter().zip(&self.scale).zip(&self.shift))
                .map(|((x, scale), shift)| x / root * scale + shift)
                .collect()
        };
        x.iter().map(norm).collect()
    }

    fn residual(&self, x: &mut Rows, y: &Rows) {
        for (x, y) in x.iter_mut().zip(y) {
            for ((x, y), gate) in x.iter_mut().zip(y).zip(&self.gate) {
                *x += gate * y;
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut Rows, y: &Rows) {
    x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y);
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn rotate(x: &mut Rows, positions: &[usize], head_dim: usize) {
    let half = head_dim / 2;
    for (x, position) in x.iter_mut().zip(positions) {
        for head in x.chunks_mut(head_dim) {
            for i in 0..half {
                let angle = *position as f64 / 10_000f64.powf(2.0 * i as f64 / head_dim as f64);
                let (low, high) = (head[i], head[i + half]);
                head[i] = low * angle.cos() - high * angle.sin();
                head[i + half] = high * angle.cos() + low * angle.sin();
            }
        }
    }
}

/// `mask[query][key]` says who sees whom; who sees nobody gets zeros.
fn attention(q: &Rows, k: &Rows, v: &Rows, heads: usize, kv_heads: usize, mask: &[Vec<bool>]) -> Rows {
    let width = q[0].len() / heads;
    let attend = |(q, mask): (&Vec<f64>, &Vec<bool>)| {
        let mut out = Vec::new();
        for head in 0..heads {
            let shared = head / (heads / kv_heads) * width;
            let seen: Vec<usize> = (0..k.len()).filter(|key| mask[*key]).collect();
            let score = |key: &usize| {
                dot(&q[head * width..][..width], &k[*key][shared..][..width]) / (width as f64).sqrt()
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..width).map(|d| {
                let sum: f64 =
                    seen.iter().zip(&weights).map(|(key, weight)| weight * v[*key][shared + d]).sum();
                if seen.is_empty() { 0.0 } else { sum / total }
            }));
        }
        out
    };
    q.iter().zip(mask).map(attend).collect()
}
