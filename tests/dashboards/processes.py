"""The server, its robots and Prometheus, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import yaml

ROOT = Path(__file__).parents[2]

# Long enough for a busy machine; nothing waits this long when all is well.
PATIENCE = 120.0

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None]) -> T:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {PATIENCE} s")


class Process:
    """A program that runs until it is asked to stop. Its last lines are shown when a test fails."""

    def __init__(self, *command: str | Path):
        # What the environment says of telemetry and of the server would change what is tested.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TENSACT_"))}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=kept | {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def check(self) -> None:
        """It is still there."""
        assert self.process.poll() is None, f"{self.process.args} ended: {self.lines[-10:]}"

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to stop, and gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        print("\n".join(self.lines[-20:]))
        return code


class Server(Process):
    """`tensact serve` on emulated chips, once it answers."""

    def __init__(self, deployment: str):
        binary = os.environ["TENSACT"]
        super().__init__(
            binary, "serve", deployment, "--emulate", "--profile", "libero", "--port", "0", "--log-format", "json"
        )
        try:
            self.address = until("the server says where it listens", self._address)
            until("the server is ready", self._ready)
        except BaseException:
            self.stop()
            raise

    def _address(self) -> str | None:
        self.check()
        for line in self.lines:
            entry = json.loads(line)
            if entry.get("message") == "listening":
                return entry["address"]
        return None

    def _ready(self) -> bool | None:
        self.check()
        return httpx.get(f"http://{self.address}/readyz").status_code == 200 or None

    def metrics(self) -> str:
        """What `/metrics` says."""
        response = httpx.get(f"http://{self.address}/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return response.text


class Prometheus(Process):
    """A Prometheus with `dashboards/prometheus.yml`, which looks more often and elsewhere."""

    def __init__(self, folder: Path, target: str):
        config = yaml.safe_load((ROOT / "dashboards/prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        super().__init__(
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        )
        try:
            until("Prometheus scrapes the server", lambda: self._up() or None)
        except BaseException:
            self.stop()
            raise

    def _up(self) -> bool:
        self.check()
        try:
            # It listens before it can answer queries.
            if httpx.get(f"{self.url}/-/ready", timeout=PATIENCE).status_code != httpx.codes.OK:
                return False
            return [float(sample["value"][1]) for sample in self.ask("up")] == [1.0]
        except httpx.TransportError:
            return False

    def ask(self, question: str) -> list[dict[str, object]]:
        """The samples that a query finds now, without those that are no number."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": question}, timeout=PATIENCE).json()
        assert answer["status"] == "success", f"{question}: {answer.get('error')}"
        return [sample for sample in answer["data"]["result"] if sample["value"][1] != "NaN"]
