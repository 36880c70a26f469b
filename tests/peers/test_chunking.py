"""Real-time chunking: a chunk goes on where the one that is being executed will be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from conftest import Serve
from observations import Observation, same

DELAY = 2


def gap(actions: np.ndarray, rest: np.ndarray) -> float:
    """How far a chunk is from the actions that are executed while it is computed."""
    return float(np.abs(actions[:DELAY] - rest[:DELAY]).max())


def chunks(policy: WebsocketClientPolicy) -> tuple[np.ndarray, dict[str, Any], np.ndarray]:
    """A chunk's rest after four actions, the next observation, and what comes without chunking."""
    rest = policy.infer(Observation.of("libero", 1).wire())["actions"][4:]
    following = Observation.of("libero", 2).wire()
    free = policy.infer(following)["actions"]
    return rest, following, free


def test_the_robot_sends_its_rest(policy: WebsocketClientPolicy) -> None:
    rest, following, free = chunks(policy)
    rtc = {"prev_chunk": rest, "inference_delay": DELAY, "execution_horizon": 6}
    guided = policy.infer(following | {"rtc": rtc})["actions"]
    assert guided.shape == free.shape
    assert gap(guided, rest) < gap(free, rest) / 4
    # Numpy's scalars and double precision say the same.
    other = {
        "prev_chunk": rest.astype(np.float64),
        "inference_delay": np.int64(DELAY),
        "execution_horizon": np.int32(6),
    }
    same(policy.infer(following | {"rtc": other}), guided)
    # The next request is free again.
    same(policy.infer(following), free)


def test_the_server_remembers_the_rest(serve: Serve) -> None:
    with serve("--profile", "libero", "--rtc", "server", "--control-hz", "30") as server:
        policy = server.client()
        rest, following, free = chunks(policy)
        policy.infer(Observation.of("libero", 1).wire())
        guided = policy.infer(following | {"rtc": {"executed": 4, "inference_delay": DELAY}})["actions"]
        rtc = {"prev_chunk": rest, "inference_delay": DELAY}
        same(policy.infer(following | {"rtc": rtc}), guided)
        assert gap(guided, rest) < gap(free, rest) / 4
        # Without a word about the delay the server takes what it has measured.
        policy.infer(Observation.of("libero", 1).wire())
        measured = policy.infer(following | {"rtc": {"executed": 4}})["actions"]
        assert np.abs(measured[0] - rest[0]).max() < np.abs(free[0] - rest[0]).max() / 4
        # Another connection is another robot: nothing is remembered of it.
        same(server.client().infer(following | {"rtc": {"executed": 4}}), free)


def test_a_server_that_does_not_remember_says_so(policy: WebsocketClientPolicy) -> None:
    _, following, free = chunks(policy)
    with pytest.raises(RuntimeError, match="executed"):
        policy.infer(following | {"rtc": {"executed": 4}})
    same(policy.infer(following), free)
