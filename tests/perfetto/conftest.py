"""What the tests share: traces of simulated runs, open in Perfetto's trace processor."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from processor import Processor

# Every stage on chips of its own, so that everything there is goes from chip to chip.
SPLIT = """
board = "loudbox-bh"
checkpoint = "pi05_base"
[batching]
max_requests = 2
max_in_flight = 6
[[pipeline]]
[[pipeline.stage]]
kind = "vision"
chips = [0, 2]
split = "cameras"
[[pipeline.stage]]
kind = "prefix"
layers = "0..9"
chips = [1]
[[pipeline.stage]]
kind = "prefix"
layers = "9..18"
chips = [3]
[[pipeline.stage]]
kind = "expert"
chips = [5]
"""


def tensact(*arguments: str | Path) -> str:
    return subprocess.run([os.environ["TENSACT"], *arguments], check=True, capture_output=True, text=True).stdout


@dataclass
class Trace:
    """A trace file, as its lines say it, as `tensact trace` reads it, and as Perfetto does."""

    events: list[dict]
    report: dict
    perfetto: Processor

    def of(self, **wanted: object) -> list[dict]:
        """Events with these values."""
        return [event for event in self.events if all(event.get(key) == value for key, value in wanted.items())]


def opened(file: Path) -> Trace:
    report = json.loads(tensact("trace", file, "--json"))
    return Trace(json.loads(file.read_text()), report, Processor(file))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="session")
def deployment(folder: Path) -> Path:
    file = folder / "split.toml"
    file.write_text(SPLIT)
    return file


@pytest.fixture(scope="session")
def run(folder: Path, deployment: Path) -> Iterator[Trace]:
    """Eight robots without faults: all requests are answered."""
    file = folder / "run.json"
    tensact("simulate", deployment, *"--robots 8 --rate 4 --duration 2s --trace-out".split(), file)
    trace = opened(file)
    yield trace
    trace.perfetto.close()


@pytest.fixture(scope="session")
def faulty(folder: Path, deployment: Path) -> Iterator[Trace]:
    """Robots that cancel, deadlines that pass, and chips that fail."""
    file = folder / "faulty.json"
    faults = "--fault stall --fault crash --fault error --mixed --seed 5 --deadline 200ms --trace-out"
    tensact("simulate", deployment, *f"--robots 8 --rate 6 --duration 2s {faults}".split(), file)
    trace = opened(file)
    yield trace
    trace.perfetto.close()


@pytest.fixture(params=["run", "faulty"])
def each(request: pytest.FixtureRequest) -> Trace:
    return request.getfixturevalue(request.param)
