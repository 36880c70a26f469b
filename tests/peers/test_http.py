"""The same actions for those who speak HTTP."""

from __future__ import annotations

import base64
from typing import Any

import msgpack
import numpy as np
import pytest
from openapi_spec_validator import validate
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from conftest import Serve
from observations import ROBOTS, Observation, same
from running import Server

ENDPOINTS = {"/healthz", "/readyz", "/metrics", "/v1/metadata", "/v1/actions", "/openapi.json"}


def as_json(observation: Observation, **more: Any) -> dict[str, Any]:
    """The observation as JSON has it: images as PNG files in base64, by short names."""
    images = {camera: base64.b64encode(observation.png(camera)).decode() for camera in observation.images}
    state = [float(value) for value in observation.state]
    key = "state" if observation.robot == "generic" else "observation/state"
    return {"images": images, key: state, "prompt": observation.prompt, "seed": observation.seed} | more


def actions_of(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["actions"], np.float32)


@pytest.mark.parametrize("robot", ["libero", "generic"])
def test_json_gives_what_the_websocket_gives(robot: str, serve: Serve) -> None:
    with serve("--profile", robot) as server:
        policy = server.client()
        for seed in range(5):
            observation = Observation.of(robot, seed)
            trace = f"{seed + 1:032x}"
            answer = server.post(
                "/v1/actions",
                json=as_json(observation, request_id=f"call {seed}"),
                headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
            )
            same(policy.infer(observation.wire()), actions_of(answer))
            assert (answer.json()["request_id"], answer.json()["trace_id"]) == (f"call {seed}", trace)
            assert answer.json()["timing"]["total_ms"] > 0


def test_json_with_the_robots_own_keys(libero: Server, policy: WebsocketClientPolicy) -> None:
    observation = Observation.of("libero", 2)
    message = as_json(observation)
    message |= dict(zip(ROBOTS["libero"][2], message.pop("images").values(), strict=True))
    expected = policy.infer(observation.wire())["actions"]
    np.testing.assert_array_equal(actions_of(libero.post("/v1/actions", json=message)), expected)


def test_msgpack_gives_what_the_websocket_gives(libero: Server, policy: WebsocketClientPolicy) -> None:
    for seed in range(5):
        message = Observation.of("libero", seed).wire()
        answer = libero.post(
            "/v1/actions", content=msgpack_numpy.packb(message), headers={"Content-Type": "application/msgpack"}
        )
        assert answer.status_code == 200, answer.text
        same(msgpack_numpy.unpackb(answer.content), policy.infer(message)["actions"])


def test_what_cannot_be_used_is_refused_with_its_key(libero: Server) -> None:
    good = as_json(Observation.of("libero", 1))
    broken = good["images"] | {"base": "not base64!"}
    for bad, word in [
        (good | {"images": {}}, "observation/image"),
        (good | {"images": broken}, "base"),
        (good | {"observation/state": [0.0] * 7}, "observation/state"),
        (good | {"observation/state": "zero"}, "observation/state"),
        (good | {"seed": -1}, "seed"),
    ]:
        answer = libero.post("/v1/actions", json=bad)
        assert answer.status_code == 400, answer.text
        assert word in answer.text
    for body, kind in [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"\xc1", "application/msgpack"),
        (msgpack.packb([]), "application/msgpack"),
    ]:
        answer = libero.post("/v1/actions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400, answer.text
    assert libero.get("/v1/actions").status_code == 405
    actions_of(libero.post("/v1/actions", json=good))


def test_every_endpoint_is_described(libero: Server) -> None:
    description = libero.get("/openapi.json").json()
    validate(description)
    assert ENDPOINTS <= description["paths"].keys()
    for path in ENDPOINTS - {"/v1/actions"}:
        assert "get" in description["paths"][path]
        assert libero.get(path).status_code == 200
    assert "post" in description["paths"]["/v1/actions"]


def test_health_and_metrics(libero: Server) -> None:
    assert libero.get("/healthz").text == "OK\n"
    before = libero.get("/metrics").text
    actions_of(libero.post("/v1/actions", json=as_json(Observation.of("libero", 1))))
    after = libero.get("/metrics").text
    assert before != after
    assert libero.get("/nowhere").status_code == 404
