"""LeRobot's side: `python lerobot_side.py CHECKPOINT THREADS bf16|f32|compiled`.

Speaks as `tensact.rs` does: a line of JSON when the model is loaded, then one for each line on standard input.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from checkpoint import Checkpoint
from lerobot_model import load
from safetensors.torch import load_file
from torch import nn


class Stages:
    """A model whose requests are timed by stage: to the last image, to the first denoising step, to the end."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen = self.started = 0.0
        both = model.paligemma_with_expert
        embed_image, denoise_step = both.embed_image, model.denoise_step

        def timed_image(*arguments: Any, **named: Any) -> torch.Tensor:
            features = embed_image(*arguments, **named)
            self.seen = time.perf_counter()
            return features

        def timed_step(*arguments: Any, **named: Any) -> torch.Tensor:
            self.started = self.started or time.perf_counter()
            return denoise_step(*arguments, **named)

        both.embed_image, model.denoise_step = timed_image, timed_step

    def answer(self, inputs: Path, samples: int, steps: int) -> dict[str, Any]:
        given = {name: tensor[:samples] for name, tensor in load_file(inputs).items()}
        cameras = sorted(name.removeprefix("in.image.") for name in given if name.startswith("in.image."))
        arguments = [
            [given[f"in.image.{camera}"] for camera in cameras],
            [given[f"in.img_mask.{camera}"] for camera in cameras],
            given["in.lang_tokens"],
            given["in.lang_masks"],
        ]
        # π0.5 reads the state as text.
        if hasattr(self.model, "state_proj"):
            arguments.append(given["in.state"])
        self.started = 0.0
        begin = time.perf_counter()
        actions = self.model.sample_actions(*arguments, noise=given["in.noise"], num_steps=steps)
        end = time.perf_counter()
        return {
            "vision_s": self.seen - begin,
            "prefix_s": self.started - self.seen,
            "denoise_s": end - self.started,
            "total_s": end - begin,
            "actions": actions[0].flatten().tolist(),
        }


def compile_parts(model: nn.Module) -> None:
    """Each stage by itself. The steps are one graph, which LeRobot's own setting would unroll ten times."""
    both = model.paligemma_with_expert
    both.embed_image = torch.compile(both.embed_image)
    both.forward = torch.compile(both.forward)
    model.denoise_step = torch.compile(model.denoise_step)


def main(folder: str, threads: str, mode: str) -> None:
    # Whatever libraries print goes to standard error.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    # A cache that outlived its run would be half written after one that was interrupted.
    with tempfile.TemporaryDirectory(prefix="torch-compiled-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        begin = time.perf_counter()
        model = load(Checkpoint(Path(folder)), torch.float32 if mode == "f32" else torch.bfloat16)
        if mode == "compiled":
            compile_parts(model)
        stages = Stages(model)
        print(json.dumps({"load_s": time.perf_counter() - begin}), file=out)
        for line in sys.stdin:
            print(json.dumps(stages.answer(**json.loads(line))), file=out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: lerobot_side.py CHECKPOINT THREADS bf16|f32|compiled")
    main(*sys.argv[1:])
