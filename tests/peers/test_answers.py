"""Robots get what `tensact infer` prints for the same observation, to the last bit, whatever dialect they speak."""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from conftest import Serve
from dialects import PACKERS, Wire
from observations import ROBOTS, Observation, infer_all, same
from running import Server


@pytest.mark.parametrize("robot", ROBOTS)
def test_fifty_observations(robot: str, serve: Serve, tiny: Path, wide: Path, tmp_path: Path) -> None:
    checkpoint = wide if robot == "aloha" else tiny
    observations = [Observation.of(robot, seed) for seed in range(50)]
    expected = infer_all(observations, checkpoint, tmp_path)
    assert len({actions.tobytes() for actions in expected}) == 50, "every observation has its own answer"
    with serve("--profile", robot, checkpoint=checkpoint) as server, Wire(server.address) as wire:
        client = server.client()
        for observation, actions in zip(observations, expected, strict=True):
            assert actions.shape == (10, ROBOTS[robot][1])
            # Two of five in a dialect that openpi's client does not speak.
            match observation.seed % 5:
                case 1:
                    answer = wire.infer(observation.wire(), PACKERS["openpi with keys of text"])
                case 3:
                    answer = wire.infer(observation.wire(), PACKERS["msgpack-numpy"])
                case _:
                    answer = client.infer(observation.wire())
            same(answer, actions)


@pytest.mark.parametrize("dialect", PACKERS)
def test_one_observation_in_each_dialect(dialect: str, libero: Server, policy: WebsocketClientPolicy) -> None:
    observation = Observation.of("libero", 7).wire()
    with Wire(libero.address) as wire:
        same(wire.infer(observation, PACKERS[dialect]), policy.infer(observation)["actions"])


def test_the_answer_is_in_openpis_dialect_with_one_array(libero: Server) -> None:
    with Wire(libero.address) as wire:
        plain = msgpack.unpackb(wire.ask(PACKERS["msgpack-numpy"](Observation.of("libero", 1).wire())))
    actions = plain["actions"]
    assert actions[b"__ndarray__"] is True
    assert actions[b"dtype"] == "<f4" and list(actions[b"shape"]) == [10, 7]
    assert len(actions[b"data"]) == 10 * 7 * 4
    # openpi's broker would cut any other array into steps.
    others = [value for key, value in plain.items() if key != "actions"]
    assert b"__ndarray__" not in msgpack.packb(others)


# A span as W3C Trace Context writes it.
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_timings_and_names_come_back(policy: WebsocketClientPolicy) -> None:
    first = policy.infer(Observation.of("libero", 1).wire(request_id="grasp 17", robot_id="arm"))
    assert first["request_id"] == "grasp 17"
    assert first["server_timing"]["infer_ms"] > 0 and "prev_total_ms" not in first["server_timing"]
    assert first["policy_timing"]["infer_ms"] > 0
    parts = {"queue_ms", "preprocess_ms", "vision_ms", "prefix_ms", "denoise_ms", "total_ms"}
    assert parts <= first["timing"].keys()
    second = policy.infer(Observation.of("libero", 2).wire())
    assert second["server_timing"]["prev_total_ms"] > 0
    traced = policy.infer(Observation.of("libero", 3).wire(traceparent=PARENT))
    assert traced["trace_id"] == PARENT.split("-")[1]
    assert len(first["trace_id"]) == 32 and first["trace_id"] != second["trace_id"]


@pytest.mark.parametrize("planes", [False, True])
def test_float_images(planes: bool, policy: WebsocketClientPolicy) -> None:
    observation = Observation.of("libero", 3)
    # As large as the tiny policy's images: nothing is resized, so nothing is rounded.
    rng = np.random.default_rng(3)
    for camera in observation.images:
        observation.images[camera] = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    expected = policy.infer(observation.wire())["actions"]
    message = observation.wire()
    for key in ROBOTS["libero"][2]:
        image = message[key].astype(np.float32) / np.float32(255)
        pixels = image if image.shape[2] == 3 else image.transpose(1, 2, 0)
        message[key] = np.ascontiguousarray(pixels.transpose(2, 0, 1) if planes else pixels)
    same(policy.infer(message), expected)
    message = {key: np.float64(value) if key in ROBOTS["libero"][2] else value for key, value in message.items()}
    same(policy.infer(message), expected)


def test_float_images_of_any_size(policy: WebsocketClientPolicy) -> None:
    message = Observation.of("libero", 4).wire()
    expected = policy.infer(message)["actions"]
    for key in ROBOTS["libero"][2]:
        message[key] = message[key].astype(np.float32) / np.float32(255)
    # Resizing rounds bytes, but not floats.
    np.testing.assert_allclose(policy.infer(message)["actions"], expected, atol=0.1)


def test_seed_noise_and_steps(policy: WebsocketClientPolicy, tiny: Path, tmp_path: Path) -> None:
    observation = Observation.of("libero", 5)
    same(policy.infer(observation.wire(num_steps=3)), observation.infer(tiny, tmp_path, "--steps", "3"))
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((2, 10, 8)).astype(np.float32)
    one, other = (policy.infer(observation.wire(noise=each))["actions"] for each in noise)
    assert not np.array_equal(one, other)
    same(policy.infer(observation.wire(noise=noise[0].astype(np.float64))), one)
    unseeded = observation.wire()
    del unseeded["seed"]
    assert policy.infer(unseeded)["actions"].shape == one.shape


def test_a_prompt_that_is_always_the_same(serve: Serve, libero: Server) -> None:
    message = Observation.of("libero", 6).wire(prompt="stack the cups")
    with serve("--profile", "libero", "--default-prompt", "stack the cups") as server:
        client = server.client()
        expected = client.infer(message)["actions"]
        other = client.infer(message | {"prompt": "open the drawer"})["actions"]
        assert not np.array_equal(other, expected)
        del message["prompt"]
        same(client.infer(message), expected)
    with pytest.raises(RuntimeError, match="prompt"):
        libero.client().infer(message)
