"""The replay itself: it makes every call that a program can hold, on every machine, in both dispatch modes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replaying import DISPATCH, replay
from sketches import MESHES, Sketch, export, one_layer, receiver, sender


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
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.calls == sum(len(sketch.calls) for sketch in programs)


def test_weights_of_all_programs_lie_there_together(tmp_path: Path) -> None:
    """Programs share weights of the same name; others need room beside them: a p150 holds three of these, not four."""

    def program(name: str, weights: str) -> Sketch:
        sketch = Sketch(name, 0)
        for number in range(2):
            sketch.values[sketch.weight(1, 1, 65536, 65536)]["name"] = f"{weights} {number}"
        return sketch

    file = tmp_path / "programs.json"
    programs = [program("first", "weight"), program("same weights", "weight"), program("others", "other weight")]
    file.write_text(json.dumps(export("p150a", *programs)))
    failures = replay(file, "p150a", "slow", tmp_path).failures
    assert len(failures) == 1, failures
    assert failures[0].startswith("program `others`: weight `other weight 1`") and "Out of Memory" in failures[0]
