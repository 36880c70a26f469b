"""What both sides are asked to compute, from the same file of inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from checkpoint import Checkpoint
from safetensors.numpy import save_file

CAMERAS = 3
# Requests that Tensact answers in one batch, against the same number one after the other.
AT_ONCE = 4
# The goal of that, beside those of the stages.
BATCH = "at once"


@dataclass(frozen=True, eq=False)
class Work:
    """A request, and what Tensact's time should be at most as a fraction of the fastest peer's, by stage; that of a
    batch, as a fraction of single requests."""

    name: str
    inputs: Path
    steps: int
    goals: dict[str, float] = field(default_factory=dict)


def works(checkpoint: Checkpoint, folder: Path, judged: bool) -> list[Work]:
    """The full request, which holds `AT_ONCE` samples, and one without a camera and with a short instruction. They have
    goals where they are `judged`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    steps, length = config["num_inference_steps"], config["tokenizer_max_length"]
    short = length // 4
    full = Work(
        f"{CAMERAS} cameras, {length} tokens",
        folder / "full.safetensors",
        steps,
        {"total": 0.82, "one step": 0.60, BATCH: 0.95} if judged else {},
    )
    partial = Work(
        f"{CAMERAS - 1} of {CAMERAS} cameras, {short} of {length} tokens",
        folder / "partial.safetensors",
        steps,
        {"total": 0.55} if judged else {},
    )
    save_file(inputs(checkpoint, AT_ONCE, CAMERAS, length), full.inputs)
    save_file(inputs(checkpoint, 1, CAMERAS - 1, short), partial.inputs)
    return [full, partial]


def inputs(checkpoint: Checkpoint, batch: int, cameras: int, tokens: int) -> dict[str, np.ndarray]:
    """Random inputs under the names of the golden tensors; what is masked is padded as LeRobot pads it."""
    config, random = checkpoint.config, np.random.default_rng(0)
    side, length = config["image_resolution"][0], config["tokenizer_max_length"]
    made: dict[str, np.ndarray] = {}
    for camera in range(CAMERAS):
        present = camera < cameras
        image = random.uniform(-1, 1, (batch, 3, side, side)) if present else np.full((batch, 3, side, side), -1.0)
        made[f"in.image.{camera}"] = image.astype(np.float32)
        made[f"in.img_mask.{camera}"] = np.full(batch, present)
    valid = np.arange(length) < tokens
    made["in.lang_tokens"] = np.where(valid, random.integers(1, checkpoint.vocab, (batch, length)), 0)
    made["in.lang_masks"] = np.broadcast_to(valid, (batch, length)).copy()
    made["in.state"] = random.uniform(-1, 1, (batch, config["max_state_dim"])).astype(np.float32)
    shape = (batch, config["action_horizon"], config["action_dim"])
    made["in.noise"] = random.standard_normal(shape).astype(np.float32)
    return made
