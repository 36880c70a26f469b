"""Traces, which mock chips cannot capture yet: what a slice runs as on a chip."""

from __future__ import annotations

from pathlib import Path

import pytest

from replaying import DISPATCH, run

# How a capture ends where it cannot be done: the process's status, and a part of its last words.
LIMITS = {"slow": (1, "Not supported for slow dispatch"), "fast": (-11, "Segmentation fault")}


@pytest.mark.parametrize("dispatch", DISPATCH)
def test_capture(dispatch: str, tmp_path: Path) -> None:
    ended = run("capture_trace.py", machine="p150a", dispatch=dispatch, folder=tmp_path)
    status, words = LIMITS[dispatch]
    if ended.status == status and words in ended.words:
        pytest.skip(f"mock chips capture no traces in {dispatch} dispatch: {words}")
    assert ended.status == 0, ended.words
