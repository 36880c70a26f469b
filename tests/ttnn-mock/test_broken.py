"""Programs that are broken on purpose: the replay must find each, and name the call."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replaying import DISPATCH, Outcome, replay
from sketches import EXACT, Sketch, export, one_layer, receiver, sender

Break = Callable[[Sketch], None]


def call(sketch: Sketch, op: str) -> dict[str, Any]:
    """The first call of an operation."""
    return next(call for call in sketch.calls if call["op"] == op)


def inner_dimensions_differ(s: Sketch) -> None:
    s.values[call(s, "linear")["weight"]]["shape"][2] *= 2


def declared_shape_is_wrong(s: Sketch) -> None:
    s.values[call(s, "concat")["out"][0]]["shape"][2] -= 32


def declared_dtype_is_wrong(s: Sketch) -> None:
    s.values[call(s, "rms_norm")["out"][0]]["dtype"] = "f32"


def mask_is_one_row(s: Sketch) -> None:
    call(s, "attention")["mask"] = call(s, "add")["b"]


def mask_is_in_l1(s: Sketch) -> None:
    s.values[call(s, "attention")["mask"]]["memory"] = "l1"


def norm_weight_is_narrow(s: Sketch) -> None:
    s.values[call(s, "layer_norm")["weight"]]["shape"][3] -= 32


def heads_do_not_divide(s: Sketch) -> None:
    call(s, "split_heads")["heads"] = 5


def slice_reaches_too_far(s: Sketch) -> None:
    call(s, "slice")["end"][3] += 32


def dtypes_are_joined(s: Sketch) -> None:
    s.values[call(s, "concat")["parts"][0]]["dtype"] = "f32"


def layouts_are_copied(s: Sketch) -> None:
    s.values[call(s, "copy")["into"]]["layout"] = "row_major"


def tensor_is_larger_than_l1(s: Sketch) -> None:
    s.input(1, 1, 16384, 16384, memory="l1")


def weights_are_larger_than_dram(s: Sketch) -> None:
    for _ in range(9):
        s.weight(1, 1, 65536, 65536, dtype="bfp8_b")


def chunks_are_larger_than_l1(s: Sketch) -> None:
    call(s, "attention").update(q_chunk=2048, k_chunk=2048)


def buffers_reach_into_tensors(s: Sketch) -> None:
    # Products and norms choose buffers that fit; attention takes the chunks that it is given.
    s.input(1, 1, 7168, 7168, memory="l1")
    call(s, "attention").update(q_chunk=256, k_chunk=256)


def value_is_used_after_it_was_freed(s: Sketch) -> None:
    x = call(s, "rms_norm")["x"]
    call(s, "rms_norm")["frees"].append(x)
    s.call("rms_norm", s.made(1, 1, 64, 128), x=x, weight=None, epsilon=1e-6, compute=EXACT)


def operation_is_unknown(s: Sketch) -> None:
    call(s, "rotary")["op"] = "rotate"


def argument_is_unknown(s: Sketch) -> None:
    call(s, "attention")["is_causal"] = True


@dataclass(frozen=True)
class Found:
    """Where the replay must find it, and words of what it must say."""

    broken: Break
    place: str
    words: str


FOUND = [
    Found(inner_dimensions_differ, "call 3 (linear)", "The k dimension does not match"),
    Found(declared_shape_is_wrong, "call 6 (concat)", "declared [1, 1, 96, 64] bf16 tile in dram; TT-NN gives [1, 1, 128, 64]"),
    Found(declared_dtype_is_wrong, "call 12 (rms_norm)", "declared [1, 1, 64, 128] f32 tile in dram; TT-NN gives [1, 1, 64, 128] bf16"),
    Found(mask_is_one_row, "call 8 (attention)", "Mask sequence length must match Q sequence length"),
    Found(mask_is_in_l1, "call 8 (attention)", "it must be in DRAM"),
    Found(norm_weight_is_narrow, "call 2 (layer_norm)", "gamma"),
    Found(heads_do_not_divide, "call 4 (split_heads)", "TT-NN says"),
    Found(slice_reaches_too_far, "call 17 (slice)", "Ends 288 must be less than or equal to the shape of the tensor 256"),
    Found(dtypes_are_joined, "call 6 (concat)", "All Tensors should have same dtypes"),
    Found(layouts_are_copied, "call 21 (copy)", "must equal output tensor layout"),
    Found(tensor_is_larger_than_l1, "input `input ", "Out of Memory: Not enough space to allocate 536870912 B L1 buffer"),
    Found(weights_are_larger_than_dram, "weight `weight ", "Out of Memory: Not enough space to allocate 4563402752 B DRAM buffer"),
    Found(chunks_are_larger_than_l1, "call 8 (attention)", "beyond max L1 size"),
    Found(buffers_reach_into_tensors, "call 8 (attention)", "clash with L1 buffers"),
    Found(value_is_used_after_it_was_freed, "call 22 (rms_norm)", "not yet made, or freed"),
    Found(operation_is_unknown, "call 5 (rotate)", "never asked for"),
    Found(argument_is_unknown, "call 8 (attention)", "unexpected keyword argument 'is_causal'"),
]


@pytest.fixture(scope="module", params=DISPATCH)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One replay of all broken programs: it goes on with the next one."""
    folder = tmp_path_factory.mktemp("broken")
    sketches = []
    for found in FOUND:
        sketch = one_layer()
        sketch.written["name"] = found.broken.__name__
        found.broken(sketch)
        sketches.append(sketch)
    file = folder / "programs.json"
    file.write_text(json.dumps(export("p150a", *sketches)))
    return replay(file, "p150a", request.param, folder)


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.broken.__name__)
def test_broken(found: Found, outcome: Outcome) -> None:
    name = found.broken.__name__
    said = [failure for failure in outcome.failures if failure.startswith(f"program `{name}`")]
    assert len(said) == 1, outcome.failures
    assert found.place in said[0] and found.words in said[0], said[0]


@pytest.mark.parametrize(
    ("programs", "sockets", "words"),
    [
        ([sender(0, 0), receiver(1, 0)], ((0, 3),), "socket 0 (chip 0 → chip 3): TT-NN says"),
        ([sender(0, 0, dtype="f32"), receiver(1, 0)], ((0, 1),), "tensor 0: [1, 1, 832, 512] f32 tile in flight is sent, [1, 1, 832, 512] bf16 tile in flight is received"),
        ([sender(0, 0)], ((0, 1),), "nothing is received"),
        ([sender(0, 0), receiver(1, 0), receiver(1, 0)], ((0, 1),), "tensor 1: nothing is sent"),
        ([sender(1, 0), receiver(1, 0)], ((0, 1),), "call 0 (send): socket 0 (chip 0 → chip 1) does not send on chip 1"),
        ([sender(0, 7), receiver(1, 0)], ((0, 1),), "call 0 (send): there is no socket 7"),
    ],
    ids=["diagonal", "other dtype", "nobody receives", "nobody sends", "wrong chip", "no such socket"],
)
def test_sockets(programs: list[Sketch], sockets: tuple[tuple[int, int], ...], words: str, tmp_path: Path) -> None:
    file = tmp_path / "programs.json"
    file.write_text(json.dumps(export("quietbox-bh", *programs, sockets=sockets)))
    outcome = replay(file, "quietbox-bh", "fast", tmp_path)
    assert any(words in failure for failure in outcome.failures), outcome.failures


def test_what_is_not_a_program(tmp_path: Path) -> None:
    file = tmp_path / "programs.json"
    file.write_text(json.dumps(export("p150a") | {"format": 2}))
    assert "not an exported program of format 1" in replay(file, "p150a", "slow", tmp_path).failures[0]


def test_a_replay_that_ends_early(tmp_path: Path) -> None:
    """No report, no success: the test shows the process's last words."""
    with pytest.raises(AssertionError, match="ended with 1(.|\n)*FileNotFoundError"):
        replay(tmp_path / "nothing.json", "p150a", "slow", tmp_path)
