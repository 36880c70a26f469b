"""The example arm: real-time chunking takes the jumps out of its motion."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

import checkpoints
from conftest import Serve
from running import PATIENCE

ARM = Path(__file__).parents[2] / "examples/arm.py"


def test_chunks_go_over_into_each_other(serve: Serve, tmp_path: Path) -> None:
    checkpoint = checkpoints.long(tmp_path / "long")
    picture = tmp_path / "arm.png"
    with serve("--rtc", "server", "--control-hz", "30", checkpoint=checkpoint) as server:
        command: list[str | Path] = [
            sys.executable,
            ARM,
            "--port",
            str(server.port),
            "--steps",
            "90",
            "--plot",
            picture,
        ]
        command += ["--rtc", "off", "--rtc", "client", "--rtc", "server"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert told.returncode == 0, told.stderr
    print(told.stdout)
    jumps = re.findall(r"jump at a border: ([\d.]+) off, ([\d.]+) (client|server)", told.stdout)
    assert [who for *_, who in jumps] == ["client", "server"]
    for without, guided, _ in jumps:
        assert float(guided) < float(without) / 3
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 1000 and image.height > 1000
        # Curves in many colours, not an empty frame.
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 100
