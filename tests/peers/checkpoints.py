"""Tiny policies with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from running import run


def tiny(folder: Path) -> Path:
    """π0 for eight joints, chunks of ten actions."""
    run("synth", "--size", "tiny", folder)
    return folder


def wide(folder: Path, dims: int) -> Path:
    """The tiny policy for more joints: the projections between robot and model are all that depends on their number."""
    run("synth", "--size", "tiny", "--dtype", "f32", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    rng = np.random.default_rng(0)
    for name, side in (
        ("state_proj.weight", 1),
        ("action_in_proj.weight", 1),
        ("action_out_proj.weight", 0),
        ("action_out_proj.bias", 0),
    ):
        old = tensors[name]
        shape = list(old.shape)
        shape[side] = dims - shape[side]
        more = rng.uniform(-0.3, 0.3, shape).astype(old.dtype)
        tensors[name] = np.concatenate([old, more], axis=side)
    save_file(tensors, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"action_dim": dims, "max_state_dim": dims}))
    for statistics in folder.glob("assets/*/norm_stats.json"):
        known = json.loads(statistics.read_text())
        for scales in known["norm_stats"].values():
            # All dimensions of a synthetic policy are scaled alike.
            scales.update({name: [values[0]] * dims for name, values in scales.items()})
        statistics.write_text(json.dumps(known))
    return folder


def long(folder: Path) -> Path:
    """The tiny policy with chunks of fifty actions, as the published ones have: no weight depends on their number."""
    tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"action_horizon": 50}))
    return folder
