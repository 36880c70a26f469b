"""The checkpoint that both sides read: openpi's names, one safetensors file."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `model.safetensors`, `config.json` and `dims.json`."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def heads(self) -> dict[str, Any]:
        """Head counts, which tensors do not show."""
        return json.loads((self.folder / "dims.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        with self.weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            name: StoredTensor(
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def depth(self, layers: str) -> int:
        """How many layers have names that begin with `layers`."""
        begin = f"{layers}."
        return 1 + max(int(name[len(begin) :].split(".")[0]) for name in self.tensors if name.startswith(begin))

    @property
    def vocab(self) -> int:
        return self.shape("paligemma_with_expert.paligemma.lm_head.weight")[0]

    def warm(self) -> None:
        """Has the system read the whole file, so that nobody's loading waits for the disk."""
        with self.weights.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
