"""What the tests share: robots that are served, and a Prometheus that watches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from processes import Process, Prometheus, Server


def pytest_report_header() -> str:
    return f"binary: {os.environ['TENSACT']}"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Pipelines of an emulated Galaxy, under the load of a few robots."""
    server = Server("tests/dashboards/split.toml")
    robots = Process(
        os.environ["TENSACT"], "bench-serve", "--url", f"ws://{server.address}", "--robots", "4", "--rate", "5",
        "--deadline", "1s", "--duration", "600s",
    )  # fmt: skip
    yield server
    robots.stop(signal.SIGINT)
    assert server.stop() == 0


@pytest.fixture(scope="session")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server.address)
    yield prometheus
    prometheus.stop()
