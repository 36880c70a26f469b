"""Connections: what they begin with, many at a time, and how they end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed

from conftest import Serve
from dialects import Wire
from observations import Observation, same
from running import PATIENCE, Server

DEPLOYMENT = """
board = "host"
checkpoint = "{checkpoint}"

[[pipeline]]
chips = [0]

[robot]
profile = "libero"
default_prompt = "wipe the table"

[server.metadata]
reset_pose = [0.0, -1.5, 1.5, 0.0]
site = "bench 3"
gripper = {{ open = 0.04, closed = 0.0 }}
"""


def test_metadata_says_what_is_served(libero: Server) -> None:
    about = libero.client().get_server_metadata()["tensact"]
    assert about["variant"] == "pi0" and about["profile"] == "libero"
    assert (about["state_dims"], about["action_dims"], about["horizon"]) == (8, 7, 10)
    assert len(about["cameras"]) == 2 and about["version"]
    told = libero.get("/v1/metadata").json()
    assert {key: told[key] for key in about} == about


def test_metadata_of_the_deployment_is_passed_on(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "deployment.toml"
    file.write_text(DEPLOYMENT.format(checkpoint=tiny))
    with Server(file) as server:
        client = server.client()
        metadata = client.get_server_metadata()
        assert metadata["reset_pose"] == [0.0, -1.5, 1.5, 0.0]
        assert metadata["site"] == "bench 3"
        assert metadata["gripper"] == {"open": 0.04, "closed": 0.0}
        assert metadata["tensact"]["profile"] == "libero"
        passed = {key: value for key, value in metadata.items() if key != "tensact"}
        assert server.get("/v1/metadata").json()["metadata"] == passed
        observation = Observation.of("libero", 1).wire()
        del observation["prompt"]
        same(client.infer(observation), client.infer(observation | {"prompt": "wipe the table"})["actions"])


def test_any_path_will_do(libero: Server) -> None:
    host = f"ws://{libero.address}/policies/first"
    client = WebsocketClientPolicy(host)
    assert client.get_server_metadata()["tensact"]["profile"] == "libero"


def test_sixteen_robots_at_once(libero: Server) -> None:
    observations = [Observation.of("libero", seed) for seed in range(16)]
    policy = libero.client()
    expected = [policy.infer(observation.wire())["actions"] for observation in observations]
    clients = [libero.client() for _ in observations]

    def ask(robot: int) -> list[np.ndarray]:
        # Every robot goes through all observations, each from another one on.
        order = [(robot + step) % 16 for step in range(16)]
        return [clients[robot].infer(observations[at].wire(robot_id=f"robot {robot}"))["actions"] for at in order]

    with ThreadPoolExecutor(16) as pool:
        for robot, answers in enumerate(pool.map(ask, range(16))):
            for step, actions in enumerate(answers):
                np.testing.assert_array_equal(actions, expected[(robot + step) % 16])


def test_the_broker_steps_through_a_chunk(policy: WebsocketClientPolicy) -> None:
    first, second = (Observation.of("libero", seed).wire() for seed in (1, 2))
    chunks = [policy.infer(first)["actions"], policy.infer(second)["actions"]]
    broker = ActionChunkBroker(policy, action_horizon=10)
    # The observations in between are not sent: the chunk goes on.
    steps = [broker.infer(first)["actions"], *(broker.infer(second)["actions"] for _ in range(19))]
    np.testing.assert_array_equal(steps, np.concatenate(chunks))
    broker.infer(second)
    broker.reset()
    np.testing.assert_array_equal(broker.infer(first)["actions"], chunks[0][0])


def test_pings_are_answered_while_a_chunk_is_computed(libero: Server) -> None:
    observation = Observation.of("libero", 1).wire(num_steps=1000)
    with Wire(libero.address) as wire:
        wire.socket.send(msgpack_numpy.packb(observation))
        assert wire.socket.ping().wait(PATIENCE)
        # Frames keep their order: had the answer been sent before the pong, it would be here.
        with pytest.raises(TimeoutError):
            wire.socket.recv(timeout=0)
        assert isinstance(wire.socket.recv(PATIENCE), bytes)


def test_a_server_that_comes_back_on_its_port(serve: Serve) -> None:
    observation = Observation.of("libero", 1).wire()
    with serve("--profile", "libero") as server:
        port = server.port
        client = server.client()
        expected = client.infer(observation)["actions"]
    with pytest.raises(ConnectionClosed):
        client.infer(observation)
    with pytest.raises(OSError):
        WebsocketClientPolicy("127.0.0.1", port)
    with serve("--profile", "libero", port=port) as server:
        assert server.port == port
        same(server.client().infer(observation), expected)


def test_a_server_that_stops_answers_first(serve: Serve, policy: WebsocketClientPolicy) -> None:
    observation = Observation.of("libero", 1).wire(num_steps=1000)
    expected = policy.infer(observation)["actions"]
    with serve("--profile", "libero") as server, Wire(server.address) as busy, Wire(server.address) as idle:
        busy.socket.send(msgpack_numpy.packb(observation))
        # Its pong says that the server has read what was sent before.
        assert busy.socket.ping().wait(PATIENCE)
        server.terminate()
        same(msgpack_numpy.unpackb(busy.socket.recv(PATIENCE)), expected)
        for wire in (busy, idle):
            with pytest.raises(ConnectionClosed) as closed:
                wire.socket.recv(PATIENCE)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        assert server.process.wait(PATIENCE) == 0
