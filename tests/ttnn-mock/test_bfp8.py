"""Whether TT-NN still packs `bfp8_b` as the fixture of Tensact's own packer says."""

from __future__ import annotations

from pathlib import Path

from replaying import run

FIXTURE = Path(__file__).parents[2] / "runtime/src/device/ttnn/bfp8/reference.safetensors"


def test_the_fixture_is_what_this_version_makes(tmp_path: Path) -> None:
    ended = run("bfp8_reference.py", "--check", FIXTURE, machine="p150a", dispatch="slow", folder=tmp_path)
    assert ended.status == 0, ended.words
