"""A replay as a process of its own, because TT-NN answers some misuse by ending the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cluster_descriptor

HERE = Path(__file__).parent
# Stand-ins for compiled kernels: a real chip must never find them in its own cache.
KERNELS = HERE.parents[1] / "target/ttnn-mock/kernels"
# Long enough for a busy machine; a replay takes seconds.
PATIENCE = 300.0

DISPATCH = ("slow", "fast")


@dataclass(frozen=True)
class Outcome:
    """What a replay says: the version of TT-NN, the number of calls that hold, and what does not hold."""

    ttnn: str
    calls: int
    failures: list[str]


@dataclass(frozen=True)
class Ended:
    """A process and its last words."""

    status: int
    words: str


def run(script: str, *arguments: str | Path, machine: str, dispatch: str, folder: Path) -> Ended:
    """Runs a script of this folder with a mock machine in its environment, in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TT_", "TTNN_"))}
    descriptor = cluster_descriptor.write(machine, folder / f"{machine}.yaml")
    environment = kept | {
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(descriptor),
        "TT_METAL_CACHE": str(KERNELS),
    }
    if dispatch == "slow":
        environment["TT_METAL_SLOW_DISPATCH_MODE"] = "1"
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=PATIENCE,
    )
    return Ended(done.returncode, "\n".join(done.stdout.splitlines()[-30:]))


def replay(programs: Path, machine: str, dispatch: str, folder: Path) -> Outcome:
    """Replays a file. A process that ends without its report fails the test with its last words."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    ended = run("replay.py", programs, report, machine=machine, dispatch=dispatch, folder=folder)
    assert ended.status == 0, f"the replay of {programs.name} ended with {ended.status}:\n{ended.words}"
    return Outcome(**json.loads(report.read_text()))
