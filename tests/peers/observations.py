"""Observations of each robot: as its client sends them, and as `tensact infer` takes them from the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from running import run

# Rooms to spare in the tiny policy's 16 tokens.
PROMPTS = ("pick up the block", "open the drawer", "fold it", "place the cup", "wipe", "go home", "close the lid")

# Size of the state and of the actions, and the robot's names of base, left and right wrist.
ROBOTS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "libero": (8, 7, ("observation/image", "observation/wrist_image")),
    "droid": (8, 8, ("observation/exterior_image_1_left", "observation/wrist_image_left")),
    "aloha": (14, 14, ("cam_high", "cam_left_wrist", "cam_right_wrist")),
    "generic": (8, 8, ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")),
}

CAMERAS = ("base", "left_wrist", "right_wrist")


@dataclass
class Observation:
    """What one robot sees, feels and is told. Everything follows from `seed`."""

    robot: str
    seed: int
    images: dict[str, np.ndarray]
    state: np.ndarray
    prompt: str

    @classmethod
    def of(cls, robot: str, seed: int) -> Observation:
        rng = np.random.default_rng([seed, len(robot)])
        dims, _, names = ROBOTS[robot]
        cameras = CAMERAS[: len(names)]
        if robot in ("aloha", "generic"):
            # Wrist cameras are optional there.
            cameras = cameras[: 1 + seed % 3]
        images = {}
        for camera in cameras:
            height, width = (int(side) for side in rng.integers(20, 90, 2))
            images[camera] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        state = rng.uniform(-1, 1, dims).astype(np.float32)
        return cls(robot, seed, images, state, PROMPTS[seed % len(PROMPTS)])

    def wire(self, **more: Any) -> dict[str, Any]:
        """The map that the robot's client sends. The seed also chooses among the ways to say the same."""
        message = {"libero": self._libero, "droid": self._droid, "aloha": self._aloha, "generic": self._generic}
        return message[self.robot]() | {"seed": self.seed} | more

    def _picture(self, camera: str, planes: bool) -> np.ndarray:
        image = self.images[camera]
        return np.ascontiguousarray(image.transpose(2, 0, 1)) if planes else image

    def _named(self, planes: bool) -> dict[str, np.ndarray]:
        names = dict(zip(CAMERAS, ROBOTS[self.robot][2]))
        return {names[camera]: self._picture(camera, planes) for camera in self.images}

    def _libero(self) -> dict[str, Any]:
        state = self.state if self.seed % 3 else self.state.astype(np.float64)
        return self._named(self.seed % 2 == 1) | {"observation/state": state, "prompt": self.prompt}

    def _droid(self) -> dict[str, Any]:
        gripper = self.state[7:]
        ways: list[Any] = [gripper, float(gripper[0]), gripper[0], np.array(gripper[0])]
        return self._named(self.seed % 5 == 4) | {
            "observation/joint_position": self.state[:7],
            "observation/gripper_position": ways[self.seed % len(ways)],
            "prompt": self.prompt.encode() if self.seed % 3 == 1 else self.prompt,
        }

    def _aloha(self) -> dict[str, Any]:
        images = self._named(True)
        if self.seed % 2:
            # Every ALOHA has this camera, and no policy looks through it.
            images["cam_low"] = np.zeros((3, 8, 8), np.uint8)
        return {"images": images, "state": self.state, "prompt": self.prompt}

    def _generic(self) -> dict[str, Any]:
        images = self._named(self.seed % 2 == 1)
        match self.seed % 3:
            case 0:
                flat = {f"images/{name}": image for name, image in images.items()}
                return flat | {"state": self.state, "prompt": self.prompt}
            case 1:
                return {"images": images, "state": self.state, "prompt": self.prompt}
            case _:
                lerobot = {f"observation.images.{name}": image for name, image in images.items()}
                return lerobot | {"observation.state": self.state, "task": self.prompt}

    def png(self, camera: str) -> bytes:
        """An image as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.images[camera]).save(file, "PNG")
        return file.getvalue()

    def infer(self, checkpoint: Path, folder: Path, *more: str) -> np.ndarray:
        """The actions that `tensact infer` gives for this observation."""
        arguments: list[str | Path] = ["infer", "--checkpoint", checkpoint, "--profile", self.robot, "--json"]
        arguments += ["--seed", str(self.seed), "--prompt", self.prompt, "--threads", "1", *more]
        arguments += ["--state", ",".join(repr(float(value)) for value in self.state)]
        for camera in self.images:
            file = folder / f"{self.robot}-{self.seed}-{camera}.png"
            file.write_bytes(self.png(camera))
            arguments += ["--image", f"{camera}={file}"]
        return np.array(json.loads(run(*arguments))["actions"], np.float32)


def infer_all(observations: Iterable[Observation], checkpoint: Path, folder: Path) -> list[np.ndarray]:
    """`tensact infer` for each, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda one: one.infer(checkpoint, folder), observations))


def same(answer: dict[str, Any], expected: np.ndarray) -> None:
    """Asserts that an answer holds exactly these actions."""
    actions = answer["actions"]
    assert isinstance(actions, np.ndarray) and actions.dtype == np.float32
    np.testing.assert_array_equal(actions, expected)
