//! Sizes of a policy, read off its tensors and its configuration.

use std::collections::{BTreeMap, BTreeSet};

use tensact_topology::{DecoderSizes, ModelSizes, Variant, VisionSizes};

use super::Finding;
use super::names::{EXPERT, TOKEN_TABLE, VISION, VLM};
use crate::config::PolicyConfig;
use crate::tensor_file::StoredTensor;

/// Measures a policy. `None` when it cannot be measured, with the reason among the findings.
pub(super) fn measure(
    config: &PolicyConfig,
    tensors: &BTreeMap<String, StoredTensor>,
    findings: &mut Vec<Finding>,
) -> Option<ModelSizes> {
    let mut ruler = Ruler { tensors, findings };
    let variant = ruler.variant(config);
    let vision = ruler.vision(config);
    let vlm = ruler.decoder(VLM, config.heads.query, config);
    let expert = ruler.decoder(EXPERT, config.heads.expert_query, config);
    let vocab = ruler.dim(&[(TOKEN_TABLE, 2, 0)]);
    let action_dim = ruler.dim(&[("action_in_proj.weight", 2, 1), ("action_out_proj.weight", 2, 0)]);
    let state_dim = match variant {
        Some(Variant::Pi0) => ruler.dim(&[("state_proj.weight", 2, 1)]).or(config.state_dim).or(action_dim),
        // π0.5 has no tensor of the state's width: openpi pads state and actions alike.
        _ => config.state_dim.or(action_dim),
    };
    let variant = variant?;
    let sizes = ModelSizes {
        variant,
        vision: vision?,
        vlm: vlm?,
        expert: expert?,
        vocab: vocab?,
        state_dim: state_dim?,
        action_dim: action_dim?,
        horizon: config.horizon,
        prompt_tokens: config.prompt_tokens.unwrap_or(match variant {
            Variant::Pi0 => 48,
            Variant::Pi05 => 200,
        }),
        steps: config.steps,
    };
    ruler.agreements(&sizes, config);
    Some(sizes)
}

struct Ruler<'a> {
    tensors: &'a BTreeMap<String, StoredTensor>,
    findings: &'a mut Vec<Finding>,
}

impl Ruler<'_> {
    fn problem<T>(&mut self, problem: String) -> Option<T> {
        self.findings.push(Finding::Sizes { problem });
        None
    }

    /// A size that several tensors show (name, number of dimensions, which of them): the first one that is there and
    /// sound decides. Missing ones are found later, when every tensor is held against the sizes.
    fn dim(&mut self, sources: &[(&str, usize, usize)]) -> Option<usize> {
        for (name, rank, axis) in sources {
            match self.tensors.get(*name).map(StoredTensor::shape) {
                Some(shape) if shape.len() == *rank && !shape.contains(&0) => return Some(shape[*axis]),
                Some(shape) => {
                    let problem =
                        format!("`{name}` has shape {shape:?}, expected {rank} dimensions above zero");
                    self.findings.push(Finding::Sizes { problem });
                }
                None => {}
            }
        }
        let names: Vec<&str> = sources.iter().map(|(name, ..)| *name).collect();
        self.problem(format!("the policy cannot be measured without `{}`", names.join("` or `")))
    }

    /// The number of layers under `prefix`, which must be numbered from 0 without a gap.
    fn layers(&mut self, prefix: &str) -> Option<usize> {
        let prefix = format!("{prefix}.layers.");
        let numbers: BTreeSet<usize> = self
            .tensors
            .range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .filter_map(|(name, _)| name[prefix.len()..].split('.').next()?.parse().ok())
            .collect();
        match numbers.last() {
            None => self.problem(format!("there is no layer under `{prefix}`")),
            Some(&last) if last >= numbers.len() => {
                let count = numbers.len();
                self.findings.push(Finding::Sizes {
                    problem: format!(
                        "under `{prefix}` there are {count} layers, but the last is number {last}: some are missing"
                    ),
                });
                // Far beyond that the number is a lie, and no list of what is missing would help.
                (last < 2 * count).then_some(last + 1)
            }
            Some(_) => Some(numbers.len()),
        }
    }

    fn variant(&mut self, config: &PolicyConfig) -> Option<Variant> {
        let has = |name: &str| self.tensors.contains_key(name);
        let adaptive = has(&format!("{EXPERT}.norm.dense.weight"));
        let pi0 = has("action_time_mlp_in.weight") || has("state_proj.weight");
        let pi05 = has("time_mlp_in.weight") || adaptive;
        let found = match (pi0, pi05) {
            (true, false) => Variant::Pi0,
            (false, true) => Variant::Pi05,
            (true, true) => {
                return self.problem(
                    "tensors of both π0 (`state_proj`, `action_time_mlp_*`) and π0.5 (`time_mlp_*`, `*.dense.*`) are there".into(),
                );
            }
            (false, false) => {
                return self.problem(
                    "neither π0's tensors (`state_proj`, `action_time_mlp_*`) nor π0.5's (`time_mlp_*`, `*.dense.*`) are there: is this another model?".into(),
                );
            }
        };
        match config.variant {
            Some(claimed) if claimed != found => {
                self.problem::<()>(format!(
                    "config.json says the policy is {claimed}, but the tensors are those of {found}: use the config.json that belongs to these weights"
                ));
                Some(found)
            }
            _ => Some(found),
        }
    }

    fn vision(&mut self, config: &PolicyConfig) -> Option<VisionSizes> {
        let patch_weight = format!("{VISION}.embeddings.patch_embedding.weight");
        let width = self.dim(&[(&patch_weight, 4, 0), (&format!("{VISION}.post_layernorm.weight"), 1, 0)]);
        let patch = self.dim(&[(&patch_weight, 4, 2)]);
        let table = self.dim(&[(&format!("{VISION}.embeddings.position_embedding.weight"), 2, 0)]);
        let layers = self.layers(&format!("{VISION}.encoder"));
        let fc1 = format!("{VISION}.encoder.layers.0.mlp.fc1");
        let mlp = self.dim(&[(&format!("{fc1}.weight"), 2, 0), (&format!("{fc1}.bias"), 1, 0)]);
        let (width, patch, table) = (width?, patch?, table?);
        let table_side = table.isqrt();
        if table_side * table_side != table {
            return self.problem(format!("the position table has {table} rows, which is not a square"));
        }
        let heads = config.heads.vision;
        if !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(2) {
            return self.problem(format!(
                "{heads} vision heads do not divide the width {width} into heads of even width: give the head count in dims.json as {{\"vis\": {{\"num_attention_heads\": …}}}}"
            ));
        }
        let image = config.image.unwrap_or(table_side * patch);
        if !image.is_multiple_of(patch) || image / patch < table_side {
            return self.problem(format!(
                "images of {image} pixels do not give at least {table_side} whole patches of {patch} a side"
            ));
        }
        Some(VisionSizes { width, layers: layers?, mlp: mlp?, heads, patch, table_side, image })
    }

    fn decoder(&mut self, prefix: &str, heads: usize, config: &PolicyConfig) -> Option<DecoderSizes> {
        let weight = |part: &str| format!("{prefix}.layers.0.{part}_proj.weight");
        let [q, k, v, o] = ["q", "k", "v", "o"].map(|part| weight(&format!("self_attn.{part}")));
        let width = self.dim(&[(&q, 2, 1), (&o, 2, 0)]);
        let mlp = self.dim(&[(&weight("mlp.gate"), 2, 0), (&weight("mlp.up"), 2, 0)]);
        let (q, k) = (self.dim(&[(&q, 2, 0), (&o, 2, 1)]), self.dim(&[(&k, 2, 0), (&v, 2, 0)]));
        let layers = self.layers(prefix);
        let (q, k) = (q?, k?);
        let head_dim = q / heads;
        if q % heads != 0 || head_dim == 0 || !head_dim.is_multiple_of(2) {
            return self.problem(format!(
                "{heads} query heads do not divide the {q} query rows under `{prefix}` into heads of even width: give the head count in dims.json as {{\"vlm\": {{\"num_heads\": …}}}}"
            ));
        }
        let kv_heads = config.heads.key_value.unwrap_or(k / head_dim);
        if kv_heads * head_dim != k || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return self.problem(format!(
                "{k} key rows under `{prefix}` are not {kv_heads} heads of width {head_dim} that {heads} query heads can share"
            ));
        }
        Some(DecoderSizes { width: width?, layers: layers?, mlp: mlp?, heads, kv_heads, head_dim })
    }

    /// What must agree although no single tensor shows it.
    fn agreements(&mut self, sizes: &ModelSizes, config: &PolicyConfig) {
        let (vlm, expert) = (&sizes.vlm, &sizes.expert);
        if (vlm.layers, vlm.kv_heads, vlm.head_dim) != (expert.layers, expert.kv_heads, expert.head_dim) {
            self.problem::<()>(format!(
                "the expert ({} layers, {} key heads of {}) cannot attend to the VLM's cache ({} layers, {} of {})",
                expert.layers, expert.kv_heads, expert.head_dim, vlm.layers, vlm.kv_heads, vlm.head_dim
            ));
        }
        for (key, said, found) in [
            ("action_dim", config.action_dim, sizes.action_dim),
            ("max_state_dim", config.state_dim, sizes.state_dim),
        ] {
            if let Some(said) = said.filter(|&said| said != found) {
                self.problem::<()>(format!("config.json says `{key}` is {said}, the tensors say {found}"));
            }
        }
        if sizes.expert.width < 4 || !sizes.expert.width.is_multiple_of(2) {
            self.problem::<()>(format!(
                "an expert of width {} cannot embed time: it must be even and at least 4",
                sizes.expert.width
            ));
        }
    }
}
