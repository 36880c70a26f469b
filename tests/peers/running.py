"""The real server as a process of its own, and how to find it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
from openpi_client.websocket_client_policy import WebsocketClientPolicy

# Long enough for a busy machine; nothing waits this long when all is well.
PATIENCE = 120.0


def binary() -> str:
    """The binary under test: `$TENSACT`, or the release build."""
    default = Path(__file__).parents[2] / "target/release/tensact"
    return os.environ.get("TENSACT", str(default))


def environment() -> dict[str, str]:
    """This environment without what would change the server's mind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENSACT")}
    return kept | {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def run(*arguments: str | Path) -> str:
    """What `tensact ARGUMENTS` prints; it must succeed."""
    command = [binary(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


class Server:
    """`tensact serve`, from its first line to its last."""

    def __init__(self, *arguments: str | Path, port: int = 0, scheme: str = "http", env: dict[str, str] | None = None):
        self.scheme = scheme
        self.log: list[str] = []
        self._address: str | None = None
        self._told = threading.Event()
        command = [binary(), "serve", *map(str, arguments), "--port", str(port), "--log-format", "json"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | (env or {}),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("message") == "listening":
                self._address = entry["address"]
                self._told.set()
        # The process is gone: nobody should wait for an address any more.
        self._told.set()

    def __enter__(self) -> Server:
        try:
            assert self._told.wait(PATIENCE), "the server did not say where it listens"
            assert self._address, "the server ended before it listened"
            if self.scheme == "http":
                self.until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def until_ready(self) -> None:
        """Polls `/readyz`, which answers 200 once actions can be asked for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.get("/readyz").status_code == 200:
                return
            time.sleep(0.02)
        raise AssertionError("the server does not become ready")

    def __exit__(self, kind: object, *_: object) -> None:
        code = self.stop()
        if kind is None:
            assert code == 0, f"the server ended with {code}"

    def terminate(self) -> None:
        """Asks it to stop, as a service manager does."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Stops it and gives its exit status; pytest shows the log of a test that failed."""
        if self.process.poll() is None:
            self.terminate()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        print("\n".join(self.log[-40:]))
        return code

    @property
    def address(self) -> str:
        """`host:port`."""
        assert self._address
        return self._address

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rsplit(":", 1)[1])

    def url(self, path: str) -> str:
        """The address of a page."""
        return f"{self.scheme}://{self.address}{path}"

    def get(self, path: str, **options: object) -> httpx.Response:
        """A page."""
        return httpx.get(self.url(path), timeout=PATIENCE, **options)  # type: ignore[arg-type]

    def post(self, path: str, **options: object) -> httpx.Response:
        """The answer to a POST."""
        return httpx.post(self.url(path), timeout=PATIENCE, **options)  # type: ignore[arg-type]

    def client(self, api_key: str | None = None) -> WebsocketClientPolicy:
        """openpi's own client, connected."""
        return WebsocketClientPolicy("127.0.0.1", self.port, api_key)
