"""What Tensact asks of TT-NN, asked: the exported programs of deployments on every kind of board."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import program
from replaying import DISPATCH, HERE, PATIENCE, replay


@dataclass(frozen=True)
class Deployment:
    """What `tensact plan` makes of a policy, a board and a goal; or a file of this folder, where that is the goal."""

    variant: str
    goal: str
    board: str
    machine: str

    def __str__(self) -> str:
        return f"{self.variant} {self.goal} {self.machine}"


DEPLOYMENTS = [
    *(
        Deployment(variant, "latency", board, machine)
        for variant in ("pi0", "pi05")
        for board, machine in [
            ("p150a", "p150a"),
            ("p150a", "p150a-120"),
            ("quietbox-bh", "quietbox-bh"),
            ("n300", "n300"),
            ("t3000", "t3000"),
        ]
    ),
    # Many requests at a time.
    *(
        Deployment(variant, "throughput", board, board)
        for variant in ("pi0", "pi05")
        for board in ("p150a", "n300")
    ),
    Deployment("pi0", "four_chips.toml", "quietbox-bh", "quietbox-bh"),
]

Exporter = Callable[[Deployment], Path]


def tensact(*arguments: str | Path) -> None:
    """Runs Tensact, which must succeed."""
    command = [os.environ["TENSACT"], *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """The file with the programs of a deployment, written once."""
    files: dict[Deployment, Path] = {}

    def export(wanted: Deployment) -> Path:
        if wanted not in files:
            folder = tmp_path_factory.mktemp("exported")
            file, programs = HERE / wanted.goal, folder / "programs.json"
            if not file.exists():
                file = folder / "deployment.toml"
                goal = ("--variant", wanted.variant, "--goal", wanted.goal)
                tensact("plan", "--board", wanted.board, *goal, "--out", file)
            tensact("ttnn", "export", file, "--out", programs)
            files[wanted] = programs
        return files[wanted]

    return export


@pytest.mark.parametrize("dispatch", DISPATCH)
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=str)
def test_exported(deployment: Deployment, dispatch: str, exported: Exporter, tmp_path: Path) -> None:
    file = exported(deployment)
    outcome = replay(file, deployment.machine, dispatch, tmp_path)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.calls == sum(1 for written in program.read(file).programs for _ in written.calls())


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=str)
def test_every_stage_is_there(deployment: Deployment, exported: Exporter) -> None:
    """Nothing is left out; and where one request uses several chips, they are joined."""
    written = program.read(exported(deployment))
    stages = {replayed.name.split()[0].rstrip(",") for replayed in written.programs}
    assert stages == {"vision", "prefix", "step"} | ({"state"} if deployment.variant == "pi0" else set())
    several = deployment.goal != "throughput" and written.mesh != (1, 1)
    chips = {replayed.chip for replayed in written.programs}
    assert (len(chips) > 1) == several
    moved = [call.op for replayed in written.programs for _, call in replayed.calls() if call.op in ("send", "receive")]
    assert bool(moved) == bool(written.sockets) == several
