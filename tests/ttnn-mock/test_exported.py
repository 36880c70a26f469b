"""What Tensact asks of TT-NN, asked: the exported programs of every policy on every board."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import program
from replaying import DISPATCH, PATIENCE, replay


@dataclass(frozen=True)
class Exported:
    """A file of programs, and the mock machine that they are for."""

    board: str
    machine: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.machine, *self.arguments)).replace("--", "")


EXPORTED = [
    Exported(board, machine, ("--policy", policy))
    for policy in ("pi0", "pi05")
    for board, machine in [
        ("p150a", "p150a"),
        ("p150a", "p150a-120"),
        ("quietbox-bh", "quietbox-bh"),
        ("n300", "n300"),
        ("t3000", "t3000"),
    ]
]


def write(exported: Exported, file: Path) -> None:
    """Has Tensact write the programs."""
    command = [os.environ["TENSACT"], "ttnn", "export", "--board", exported.board, "--out", file, *exported.arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


@pytest.mark.parametrize("dispatch", DISPATCH)
@pytest.mark.parametrize("exported", EXPORTED, ids=str)
def test_exported(exported: Exported, dispatch: str, tmp_path: Path) -> None:
    file = tmp_path / "programs.json"
    write(exported, file)
    outcome = replay(file, exported.machine, dispatch, tmp_path)
    assert not outcome.failures, "\n".join(outcome.failures)
    written = program.read(file)
    assert written.programs
    assert outcome.calls == sum(1 for replayed in written.programs for _ in replayed.calls())


@pytest.mark.parametrize("exported", EXPORTED, ids=str)
def test_every_stage_is_there(exported: Exported, tmp_path: Path) -> None:
    """Programs of vision, prefix and expert; and where a board has several chips, several are used and joined."""
    file = tmp_path / "programs.json"
    write(exported, file)
    written = program.read(file)
    names = {replayed.name.split()[0].rstrip(",") for replayed in written.programs}
    assert {"vision", "prefix", "step"} <= names
    rows, columns = written.mesh
    if rows * columns > 1:
        assert len({replayed.chip for replayed in written.programs}) > 1
        assert written.sockets
