"""The replay itself: it makes every call that a program can hold, on every machine, in both dispatch modes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replaying import DISPATCH, replay
from sketches import MESHES, export, one_layer, receiver, sender


@pytest.mark.parametrize("dispatch", DISPATCH)
@pytest.mark.parametrize("machine", MESHES)
def test_every_call(machine: str, dispatch: str, tmp_path: Path) -> None:
    rows, columns = MESHES[machine]
    last = rows * columns - 1
    programs = [one_layer(0), one_layer(last)]
    sockets: tuple[tuple[int, int], ...] = ()
    if last > 0:
        # Along both dimensions of the mesh, and back.
        sockets = ((0, 1), (1, 0), (last, last - columns if rows > 1 else last - 1))
        programs += [sender(a, number) for number, (a, _) in enumerate(sockets)]
        programs += [receiver(b, number) for number, (_, b) in enumerate(sockets)]
    file = tmp_path / "programs.json"
    file.write_text(json.dumps(export(machine, *programs, sockets=sockets)))

    outcome = replay(file, machine, dispatch, tmp_path)
    assert outcome.failures == []
    assert outcome.calls == sum(len(sketch.calls) for sketch in programs)
