"""What the tests share: tiny checkpoints, and servers that are started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

import checkpoints
from running import Server, binary

Serve = Callable[..., Server]


def pytest_report_header() -> str:
    return f"binary: {binary()}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for two arms."""
    return checkpoints.wide(tmp_path_factory.mktemp("wide"), 14)


@pytest.fixture(scope="session")
def serve(tiny: Path) -> Serve:
    """`with serve("--profile", "libero", ...) as server:` serves the tiny policy."""

    def start(*arguments: str | Path, checkpoint: Path = tiny, **options: object) -> Server:
        return Server("--checkpoint", checkpoint, *arguments, **options)  # type: ignore[arg-type]

    return start


@pytest.fixture(scope="session")
def libero(serve: Serve) -> Iterator[Server]:
    """A server of the `libero` robot that all tests may use and none may stop."""
    with serve("--profile", "libero") as server:
        yield server


@pytest.fixture
def policy(libero: Server) -> Iterator[WebsocketClientPolicy]:
    """openpi's client, connected to `libero`."""
    client = libero.client()
    yield client
    client._ws.close()
