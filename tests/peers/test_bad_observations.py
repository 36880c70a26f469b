"""A bad observation is answered with an error that names its key, and the robot keeps its connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from observations import Observation, same

IMAGE, WRIST = "observation/image", "observation/wrist_image"
STATE = "observation/state"

Frame = bytes | str | dict[str, Any]


class AsIs:
    """In place of the client's packer: sends frames that it would not make."""

    def pack(self, frame: bytes | str) -> bytes | str:
        return frame


def good() -> dict[str, Any]:
    return Observation.of("libero", 9).wire()


def array(dtype: str, shape: list[int], data: bytes) -> dict[bytes, Any]:
    """An array that numpy would not write."""
    return {b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data}


def packed(**parts: Any) -> bytes:
    """A good observation but for some parts."""
    return msgpack_numpy.packb(good() | {f"observation/{key}": part for key, part in parts.items()})


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in good().items() if name != key}


def state(place: int, value: float) -> dict[str, Any]:
    changed = good()[STATE].copy()
    changed[place] = value
    return good() | {STATE: changed}


# What is sent, and words that the error must have.
BAD: dict[str, tuple[Callable[[], Frame], tuple[str, ...]]] = {
    "an image is missing": (lambda: without(WRIST), (WRIST,)),
    "the state is missing": (lambda: without(STATE), (STATE,)),
    "the prompt is missing": (lambda: without("prompt"), ("prompt",)),
    "a state of seven": (lambda: good() | {STATE: np.zeros(7, np.float32)}, (STATE, "7", "8")),
    "a state of text": (lambda: good() | {STATE: "0 0 0"}, (STATE,)),
    "NaN in the state": (lambda: state(2, np.nan), (STATE,)),
    "infinity in the state": (lambda: state(0, np.inf), (STATE,)),
    "an image without rows": (lambda: good() | {IMAGE: np.zeros((0, 64, 3), np.uint8)}, (IMAGE,)),
    "an image without columns": (lambda: good() | {IMAGE: np.zeros((3, 64, 0), np.uint8)}, (IMAGE,)),
    "an image in grey": (lambda: good() | {IMAGE: np.zeros((64, 64), np.uint8)}, (IMAGE,)),
    "an image of 16 bits": (lambda: good() | {IMAGE: np.zeros((64, 64, 3), np.uint16)}, (IMAGE,)),
    "floats above one": (lambda: good() | {IMAGE: np.full((8, 8, 3), 255, np.float32)}, (IMAGE,)),
    "objects": (lambda: packed(state=array("|O", [8], b"\0" * 64)), (STATE, "O")),
    "complex numbers": (lambda: packed(state=array("<c8", [8], b"\0" * 64)), (STATE, "c8")),
    "records": (lambda: packed(state=array("|V4", [8], b"\0" * 32)), (STATE, "V4")),
    "an unknown dtype": (lambda: packed(image=array("nonsense", [2, 2, 3], b"\0" * 12)), (IMAGE, "nonsense")),
    "fewer bytes than the shape says": (lambda: packed(image=array("|u1", [2, 2, 3], b"\0" * 11)), (IMAGE,)),
    "more bytes than the shape says": (lambda: packed(state=array("<f4", [8], b"\0" * 36)), (STATE,)),
    "a huge shape": (lambda: packed(image=array("|u1", [2**40, 2**40, 3], b"")), (IMAGE,)),
    "a negative shape": (lambda: packed(image=array("|u1", [-2, -2, 3], b"\0" * 12)), (IMAGE,)),
    "a prompt of bytes that are no text": (lambda: good() | {"prompt": b"\xff\xfe"}, ("prompt",)),
    "a seed that is text": (lambda: good() | {"seed": "seven"}, ("seed",)),
    "no denoising steps": (lambda: good() | {"num_steps": 0}, ("num_steps",)),
    "noise of another shape": (lambda: good() | {"noise": np.zeros((3, 8), np.float32)}, ("noise",)),
    "a rest without a delay": (lambda: good() | {"rtc": {"prev_chunk": np.zeros((4, 7))}}, ("rtc", "inference_delay")),
    "a rest of another robot": (
        lambda: good() | {"rtc": {"prev_chunk": np.zeros((4, 3)), "inference_delay": 1}},
        ("prev_chunk", "[4, 3]", "7"),
    ),
    "a list": (lambda: msgpack.packb([1, 2, 3]), ("map",)),
    "a number": (lambda: msgpack.packb(7), ("map",)),
    "garbage": (lambda: bytes(range(0x80, 0x100)), ()),
    "half a message": (lambda: msgpack_numpy.packb(good())[:-20], ()),
    "two messages in one": (lambda: msgpack_numpy.packb(good()) * 2, ()),
    "nothing": (lambda: b"", ()),
    "text": (lambda: "pick up the block", ()),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_observation(name: str, policy: WebsocketClientPolicy) -> None:
    make, words = BAD[name]
    expected = policy.infer(good())["actions"]
    packer = policy._packer
    frame = make()
    if not isinstance(frame, dict):
        policy._packer = AsIs()
    with pytest.raises(RuntimeError) as error:
        policy.infer(frame)
    for word in words:
        assert word in str(error.value)
    policy._packer = packer
    same(policy.infer(good()), expected)


def test_everything_that_is_wrong_is_said_at_once(policy: WebsocketClientPolicy) -> None:
    message = without(WRIST) | {STATE: np.full(8, np.nan, np.float32)}
    del message["prompt"]
    with pytest.raises(RuntimeError) as error:
        policy.infer(message)
    for word in (WRIST, STATE, "prompt"):
        assert word in str(error.value)


def test_unknown_keys_do_no_harm(policy: WebsocketClientPolicy) -> None:
    expected = policy.infer(good())["actions"]
    more = {"timestamp": 17.5, "episode": {"index": 3}, "observation/depth": np.zeros((4, 4), np.float32), "none": None}
    same(policy.infer(good() | more), expected)


def test_a_deadline_that_cannot_be_met(policy: WebsocketClientPolicy) -> None:
    expected = policy.infer(good())["actions"]
    with pytest.raises(RuntimeError):
        policy.infer(good() | {"deadline_ms": 0.001})
    same(policy.infer(good() | {"deadline_ms": 3_600_000.0}), expected)
