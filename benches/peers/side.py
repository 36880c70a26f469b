"""A process that has loaded a policy and answers requests, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("vision", "prefix", "denoising")


@dataclass(frozen=True)
class Answer:
    """Seconds by stage, which together are the total, and the actions of the first sample."""

    seconds: dict[str, float]
    actions: list[float]


class SideEnded(Exception):
    """A side's process ended before it answered."""


class Side:
    """Tensact or one mode of LeRobot, from its first line to its last."""

    def __init__(self, name: str, command: Sequence[str | Path], threads: int) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
        try:
            self.load_s: float = self._line()["load_s"]
        except BaseException:
            self.process.kill()
            raise
        self.loading_peak = self.peak()
        self._forget_peak()

    def ask(self, inputs: Path, steps: int, samples: int = 1) -> Answer:
        """The answer to a request for the first samples of a file."""
        request = {"inputs": str(inputs.resolve()), "samples": samples, "steps": steps}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self._line()
        names = zip((*STAGES, "total"), ("vision_s", "prefix_s", "denoise_s", "total_s"), strict=True)
        seconds = {stage: line[name] for stage, name in names}
        return Answer(seconds | {"one step": seconds["denoising"] / steps}, line["actions"])

    def peak(self) -> int | None:
        """Most bytes that were resident while the model was loaded or, once it is, since then; only Linux tells."""
        return self._status("VmHWM")

    def mapped(self) -> int:
        """Bytes that are resident and belong to files, which the system counts as free."""
        return self._status("RssFile") or 0

    def close(self) -> None:
        """Ends the process, whose input ends."""
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _status(self, key: str) -> int | None:
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)

    def _line(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SideEnded(f"{self.name} ended with status {self.process.wait()}; what it said is above")
        return json.loads(line)

    def _forget_peak(self) -> None:
        try:
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            pass
