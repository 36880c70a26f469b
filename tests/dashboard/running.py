"""The real server and its load as processes of their own."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

# Long enough for a busy machine; nothing waits this long when all is well.
PATIENCE = 120.0

ROOT = Path(__file__).parents[2]
GALAXY = ROOT / "configs/galaxy-bh.toml"


def binary() -> str:
    """The binary under test: `$TENSACT`, or the release build."""
    return os.environ.get("TENSACT", str(ROOT / "target/release/tensact"))


def environment() -> dict[str, str]:
    """This environment without what would change the server's mind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENSACT")}
    return kept | {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def png(side: int = 8) -> str:
    """A black picture, in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + b"\0\0\0" * side) * side))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")).decode()


class Server:
    """An emulated Galaxy behind `tensact serve`, from its first line to its last."""

    def __init__(self, *arguments: str | Path, port: int = 0):
        self.log: list[str] = []
        self._address: str | None = None
        self._told = threading.Event()
        fixed = ["serve", GALAXY, "--emulate", "--profile", "libero", "--log-format", "json"]
        self.process = subprocess.Popen(
            [binary(), *map(str, fixed), "--port", str(port), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
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
            self._until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def _until_ready(self) -> None:
        """Polls `/readyz`, which answers 200 once actions can be asked for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=PATIENCE):
                    return
            except urllib.error.HTTPError:
                time.sleep(0.02)
        raise AssertionError("the server does not become ready")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.process.kill()
        self.stop()

    def stop(self) -> None:
        """Stops it; pytest shows the log of a test that failed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        print("\n".join(self.log[-40:]))

    @property
    def address(self) -> str:
        """`host:port`."""
        assert self._address
        return self._address

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rsplit(":", 1)[1])

    @property
    def dashboard(self) -> str:
        """The address of the page."""
        return f"http://{self.address}/dashboard"

    def ask(self, robot: str, trace: str) -> None:
        """Sends one observation of a robot, as part of a trace, and waits for its actions."""
        images = {"base": png(), "left_wrist": png()}
        body = {"robot_id": robot, "observation/state": [0.0] * 8, "prompt": "go", "images": images}
        headers = {"content-type": "application/json", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        request = urllib.request.Request(f"http://{self.address}/v1/actions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert "actions" in json.load(answer)


class Load:
    """Robots of `tensact bench-serve`, which send until they are stopped."""

    def __init__(self, server: Server, robots: int = 16, rate: float = 4.0, key: str | None = None):
        fixed = ["bench-serve", "--url", f"ws://{server.address}", "--profile", "libero", "--duration", "1h"]
        key_of = {"TENSACT_API_KEY": key} if key else {}
        self.process = subprocess.Popen(
            [binary(), *fixed, "--robots", str(robots), "--rate", str(rate)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment() | key_of,
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
