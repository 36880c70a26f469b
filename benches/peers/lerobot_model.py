"""LeRobot's model with the weights of a checkpoint, without a detour through random weights in f32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
from checkpoint import Checkpoint, StoredTensor
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from torch import nn

BOTH = "paligemma_with_expert."
TABLE = f"{BOTH}paligemma.lm_head.weight"
TIED_TABLE = f"{BOTH}paligemma.model.language_model.embed_tokens.weight"
VISION = f"{BOTH}paligemma.model.vision_tower.vision_model"
LANGUAGE = f"{BOTH}paligemma.model.language_model.layers"
EXPERT = f"{BOTH}gemma_expert.model.layers"


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """`PI0Pytorch` or `PI05Pytorch`: its transformers in `dtype`, the small layers around them in f32, as LeRobot wants
    them."""
    config = checkpoint.config
    kind = PI0Config if config["type"] == "pi0" else PI05Config
    modeling = modeling_pi0 if config["type"] == "pi0" else modeling_pi05
    settings = kind(
        device="cpu",
        chunk_size=config["action_horizon"],
        n_action_steps=config["action_horizon"],
        max_state_dim=config["max_state_dim"],
        max_action_dim=config["action_dim"],
        num_inference_steps=config["num_inference_steps"],
        image_resolution=tuple(config["image_resolution"]),
        tokenizer_max_length=config["tokenizer_max_length"],
    )
    with torch.device("meta"), resized(checkpoint, modeling):
        model = modeling.PI0Pytorch(settings) if kind is PI0Config else modeling.PI05Pytorch(settings)
    state = {}
    with checkpoint.weights.open("rb") as file:
        for name, stored in checkpoint.tensors.items():
            tensor = read(file, stored)
            state[name] = tensor.to(dtype if name.startswith(BOTH) else torch.float32)
    state[TIED_TABLE] = state[TABLE]
    model.load_state_dict(state, assign=True)
    fill_buffers(model)
    cast_conditions(model)
    return model.eval()


def read(file, stored: StoredTensor) -> torch.Tensor:
    """A tensor of its own memory: one that is mapped would count twice, or wait for the disk in the middle of a run."""
    dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[stored.dtype]
    tensor = torch.empty(stored.shape, dtype=dtype)
    file.seek(stored.start)
    if file.readinto(tensor.view(-1).view(torch.uint8).numpy()) != stored.length:
        raise ValueError(f"{file.name} ends in the middle of a tensor")
    return tensor


def fill_buffers(model: nn.Module) -> None:
    """What no checkpoint holds. Angles stay in f32, whatever the weights are: a position of 800 needs it."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            fresh = type(module)(module.config)
            module.inv_freq, module.original_inv_freq = fresh.inv_freq, fresh.original_inv_freq
        if hasattr(module, "embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
        if hasattr(module, "num_positions"):
            module.position_ids = torch.arange(module.num_positions)[None]
    everything = [*model.named_parameters(), *model.named_buffers()]
    if empty := [name for name, tensor in everything if tensor.is_meta]:
        raise RuntimeError(f"this LeRobot has tensors that the checkpoint does not fill: {', '.join(empty)}")


def cast_conditions(model: nn.Module) -> None:
    """π0.5's conditions are f32, which norms with bf16 weights do not take by themselves."""
    for name, module in model.named_modules():
        if name.endswith("norm.dense"):
            module.register_forward_pre_hook(lambda dense, inputs: (inputs[0].to(dense.weight.dtype),))


def resized(checkpoint: Checkpoint, modeling) -> AbstractContextManager:
    """LeRobot builds the published sizes only; for others its configurations are changed on their way to
    transformers."""
    vlm, expert = (decoder(checkpoint, modeling, of) for of in [(LANGUAGE, "vlm"), (EXPERT, "exp")])
    published = (modeling.get_gemma_config(name) for name in ["gemma_2b", "gemma_300m"])
    if [vars(of) for of in published] == [vars(vlm), vars(expert)]:
        return nullcontext()

    def with_vision(config):
        width, _, _, patch_size = checkpoint.shape(f"{VISION}.embeddings.patch_embedding.weight")
        config.text_config.vocab_size = config._vocab_size = checkpoint.vocab
        vision = config.vision_config
        vision.hidden_size, vision.patch_size, vision.projection_dim = width, patch_size, vlm.width
        vision.num_hidden_layers = checkpoint.depth(f"{VISION}.encoder.layers")
        vision.num_attention_heads = checkpoint.heads["vis"]["num_attention_heads"]
        vision.intermediate_size = checkpoint.shape(f"{VISION}.encoder.layers.0.mlp.fc1.weight")[0]
        return paligemma(config=config)

    def with_vocab(config):
        config.vocab_size = checkpoint.vocab
        return gemma(config=config)

    paligemma, gemma = modeling.PaliGemmaForConditionalGenerationWithPiGemma, modeling.PiGemmaForCausalLM
    return patch.multiple(
        modeling,
        get_gemma_config=lambda name: vlm if name == "gemma_2b" else expert,
        PaliGemmaForConditionalGenerationWithPiGemma=with_vision,
        PiGemmaForCausalLM=with_vocab,
    )


def decoder(checkpoint: Checkpoint, modeling, of: tuple[str, str]):
    """LeRobot's `GemmaConfig` of the language model or the expert."""
    layers, heads = of[0], checkpoint.heads[of[1]]
    mlp, width = checkpoint.shape(f"{layers}.0.mlp.gate_proj.weight")
    return modeling.GemmaConfig(
        width=width,
        depth=checkpoint.depth(layers),
        mlp_dim=mlp,
        num_heads=heads["num_heads"],
        num_kv_heads=heads["num_kv_heads"],
        head_dim=checkpoint.shape(f"{layers}.0.self_attn.q_proj.weight")[0] // heads["num_heads"],
    )
