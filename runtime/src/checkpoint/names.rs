//! The names under which the same tensors travel, and the one set of names used here: openpi's.

use std::fmt;

use tensact_topology::{DecoderSizes, ModelSizes, StageKind, Variant};

use crate::preprocess::statistics::is_buffer;

/// Prefix of the vision tower's tensors.
pub const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model";
/// Prefix of the projector from the vision tower to the VLM.
pub const PROJECTOR: &str = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear";
/// Prefix of the VLM's tensors.
pub const VLM: &str = "paligemma_with_expert.paligemma.model.language_model";
/// The token table, tied to the VLM's unused output head.
pub const TOKEN_TABLE: &str = "paligemma_with_expert.paligemma.lm_head.weight";
/// Prefix of the action expert's tensors.
pub const EXPERT: &str = "paligemma_with_expert.gemma_expert.model";

/// The token table under its other name.
const EMBED_TOKENS: &str = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";
const EXPERT_HEAD: &str = "paligemma_with_expert.gemma_expert.lm_head.weight";

/// Tensors that some writers leave in a file and no policy uses, by prefix.
const NEVER_READ: [&str; 3] = [
    "paligemma_with_expert.paligemma.model.vision_tower.vision_model.head.",
    "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.position_ids",
    "paligemma_with_expert.gemma_expert.model.embed_tokens.weight",
];

/// Which writer's names a file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Naming {
    /// Names begin with `model.`, as LeRobot's do.
    pub model_prefix: bool,
    /// `language_model.model` and no inner `model.`, as in LeRobot up to 0.3.
    pub legacy: bool,
    /// No `vision_model.`, as transformers from 5.6 on writes.
    pub flat_vision: bool,
}

impl Naming {
    /// What the names of a file have in common.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let any = |part: &str| names.clone().any(|name| name.contains(part));
        Self {
            model_prefix: names.clone().any(|name| name.starts_with("model.")),
            legacy: any("paligemma.language_model.") || any("paligemma.vision_tower."),
            flat_vision: any("vision_tower.encoder.") || any("vision_tower.embeddings."),
        }
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.legacy, self.model_prefix) {
            (true, _) => "LeRobot up to 0.3",
            (false, true) => "LeRobot 0.4 or newer",
            (false, false) => "openpi",
        })?;
        if self.flat_vision { f.write_str(", transformers 5.6 or newer") } else { Ok(()) }
    }
}

/// openpi's name of the tensor that a file calls `raw`.
pub fn canonical(raw: &str, variant_hint: Option<Variant>) -> String {
    let name = raw.strip_prefix("model.").unwrap_or(raw);
    if let Some(rest) = name.strip_prefix("paligemma_with_expert.paligemma.") {
        return match canonical_paligemma(rest) {
            name if name == EMBED_TOKENS => TOKEN_TABLE.into(),
            name => name,
        };
    }
    match (variant_hint, name.strip_prefix("time_mlp_")) {
        (Some(Variant::Pi0), Some(rest)) => format!("action_time_mlp_{rest}"),
        _ => name.into(),
    }
}

/// Whether a file's name for the token table is that of the embedding, not of the output head.
pub(crate) fn is_embedding(raw: &str) -> bool {
    raw.ends_with("embed_tokens.weight")
}

/// `rest` follows `paligemma_with_expert.paligemma.`.
fn canonical_paligemma(rest: &str) -> String {
    let rest = rest.strip_prefix("model.").unwrap_or(rest);
    if let Some(head) = rest.strip_prefix("language_model.lm_head.").or(rest.strip_prefix("lm_head.")) {
        return format!("paligemma_with_expert.paligemma.lm_head.{head}");
    }
    if let Some(decoder) = rest.strip_prefix("language_model.") {
        return format!("{VLM}.{}", decoder.strip_prefix("model.").unwrap_or(decoder));
    }
    if let Some(tower) = rest.strip_prefix("vision_tower.") {
        return format!("{VISION}.{}", tower.strip_prefix("vision_model.").unwrap_or(tower));
    }
    format!("paligemma_with_expert.paligemma.model.{rest}")
}

/// Whether a tensor of this canonical name may be in a file although no policy uses it.
pub(crate) fn is_never_read(name: &str) -> bool {
    name == EXPERT_HEAD || is_buffer(name) || NEVER_READ.iter().any(|prefix| name.starts_with(prefix))
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Weights of a stage. The projector counts to the vision tower, the action and state projections to the expert.
    Stage(StageKind),
    /// In the published files, used by nothing.
    Unused,
}

/// A tensor that a checkpoint of given sizes holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// openpi's name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What it is for.
    pub part: Part,
}

/// Every tensor that openpi writes for a policy of these sizes: 777 for the base π0.
pub fn tensor_specs(sizes: &ModelSizes) -> Vec<TensorSpec> {
    let mut specs = Vec::new();
    vision_specs(sizes, &mut specs);
    decoder_specs(VLM, StageKind::Prefix, &sizes.vlm, None, &mut specs);
    push(&mut specs, StageKind::Prefix, TOKEN_TABLE.into(), &[sizes.vocab, sizes.vlm.width]);
    let condition = (sizes.variant == Variant::Pi05).then_some(sizes.expert.width);
    decoder_specs(EXPERT, StageKind::Expert, &sizes.expert, condition, &mut specs);
    projection_specs(sizes, &mut specs);
    specs.push(TensorSpec {
        name: EXPERT_HEAD.into(),
        shape: vec![sizes.vocab, sizes.expert.width],
        part: Part::Unused,
    });
    specs
}

fn push(specs: &mut Vec<TensorSpec>, stage: StageKind, name: String, shape: &[usize]) {
    specs.push(TensorSpec { name, shape: shape.into(), part: Part::Stage(stage) });
}

/// A linear layer or norm with weight and bias.
fn push_affine(specs: &mut Vec<TensorSpec>, stage: StageKind, name: &str, weight: &[usize]) {
    push(specs, stage, format!("{name}.weight"), weight);
    push(specs, stage, format!("{name}.bias"), &weight[..1]);
}

fn vision_specs(sizes: &ModelSizes, specs: &mut Vec<TensorSpec>) {
    let v = &sizes.vision;
    let stage = StageKind::Vision;
    push_affine(
        specs,
        stage,
        &format!("{VISION}.embeddings.patch_embedding"),
        &[v.width, 3, v.patch, v.patch],
    );
    push(
        specs,
        stage,
        format!("{VISION}.embeddings.position_embedding.weight"),
        &[v.table_side * v.table_side, v.width],
    );
    for layer in 0..v.layers {
        let block = format!("{VISION}.encoder.layers.{layer}");
        for norm in ["layer_norm1", "layer_norm2"] {
            push_affine(specs, stage, &format!("{block}.{norm}"), &[v.width]);
        }
        for proj in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            push_affine(specs, stage, &format!("{block}.self_attn.{proj}"), &[v.width, v.width]);
        }
        push_affine(specs, stage, &format!("{block}.mlp.fc1"), &[v.mlp, v.width]);
        push_affine(specs, stage, &format!("{block}.mlp.fc2"), &[v.width, v.mlp]);
    }
    push_affine(specs, stage, &format!("{VISION}.post_layernorm"), &[v.width]);
    push_affine(specs, stage, PROJECTOR, &[sizes.vlm.width, v.width]);
}

/// `condition` is the width of the time condition where the norms are adaptive.
fn decoder_specs(
    prefix: &str,
    stage: StageKind,
    d: &DecoderSizes,
    condition: Option<usize>,
    specs: &mut Vec<TensorSpec>,
) {
    let norm = |specs: &mut Vec<TensorSpec>, name: String| match condition {
        Some(condition) => {
            push_affine(specs, stage, &format!("{name}.dense"), &[3 * d.width, condition]);
        }
        None => push(specs, stage, format!("{name}.weight"), &[d.width]),
    };
    for layer in 0..d.layers {
        let block = format!("{prefix}.layers.{layer}");
        norm(specs, format!("{block}.input_layernorm"));
        norm(specs, format!("{block}.post_attention_layernorm"));
        let linears = [
            ("self_attn.q_proj", d.q_width(), d.width),
            ("self_attn.k_proj", d.kv_width(), d.width),
            ("self_attn.v_proj", d.kv_width(), d.width),
            ("self_attn.o_proj", d.width, d.q_width()),
            ("mlp.gate_proj", d.mlp, d.width),
            ("mlp.up_proj", d.mlp, d.width),
            ("mlp.down_proj", d.width, d.mlp),
        ];
        for (name, outputs, inputs) in linears {
            push(specs, stage, format!("{block}.{name}.weight"), &[outputs, inputs]);
        }
    }
    norm(specs, format!("{prefix}.norm"));
}

fn projection_specs(sizes: &ModelSizes, specs: &mut Vec<TensorSpec>) {
    let width = sizes.expert.width;
    let stage = StageKind::Expert;
    push_affine(specs, stage, "action_in_proj", &[width, sizes.action_dim]);
    push_affine(specs, stage, "action_out_proj", &[sizes.action_dim, width]);
    match sizes.variant {
        Variant::Pi0 => {
            push_affine(specs, stage, "state_proj", &[width, sizes.state_dim]);
            push_affine(specs, stage, "action_time_mlp_in", &[width, 2 * width]);
            push_affine(specs, stage, "action_time_mlp_out", &[width, width]);
        }
        Variant::Pi05 => {
            push_affine(specs, stage, "time_mlp_in", &[width, width]);
            push_affine(specs, stage, "time_mlp_out", &[width, width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_tensor_counts() {
        assert_eq!(tensor_specs(&ModelSizes::base(Variant::Pi0)).len(), 777);
        // LeRobot's 813 count the token table twice.
        assert_eq!(tensor_specs(&ModelSizes::base(Variant::Pi05)).len(), 812);
        let parameters: usize = tensor_specs(&ModelSizes::base(Variant::Pi0))
            .iter()
            .map(|s| s.shape.iter().product::<usize>())
            .sum();
        assert_eq!(parameters, 3_501_372_176);
    }

    #[test]
    fn every_writers_name_becomes_openpis() {
        let q = format!("{VLM}.layers.3.self_attn.q_proj.weight");
        let patch = format!("{VISION}.embeddings.patch_embedding.bias");
        for (raw, expected) in [
            ("paligemma_with_expert.paligemma.model.language_model.layers.3.self_attn.q_proj.weight", &q),
            (
                "model.paligemma_with_expert.paligemma.model.language_model.layers.3.self_attn.q_proj.weight",
                &q,
            ),
            (
                "model.paligemma_with_expert.paligemma.language_model.model.layers.3.self_attn.q_proj.weight",
                &q,
            ),
            (
                "paligemma_with_expert.paligemma.vision_tower.vision_model.embeddings.patch_embedding.bias",
                &patch,
            ),
            ("paligemma_with_expert.paligemma.model.vision_tower.embeddings.patch_embedding.bias", &patch),
            (
                "paligemma_with_expert.paligemma.multi_modal_projector.linear.bias",
                &format!("{PROJECTOR}.bias"),
            ),
            ("paligemma_with_expert.paligemma.language_model.lm_head.weight", &TOKEN_TABLE.to_string()),
            (
                "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight",
                &TOKEN_TABLE.to_string(),
            ),
        ] {
            assert_eq!(&canonical(raw, None), expected);
        }
        assert_eq!(canonical("time_mlp_in.weight", Some(Variant::Pi0)), "action_time_mlp_in.weight");
        assert_eq!(canonical("model.time_mlp_in.weight", Some(Variant::Pi05)), "time_mlp_in.weight");
    }
}
