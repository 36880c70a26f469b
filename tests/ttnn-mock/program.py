"""Exported programs, as `tensact ttnn export` writes them (`docs/ttnn.md`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
ORIGINS = ("weight", "input", "buffer", "call")


class Refused(Exception):
    """A program that does not hold: what is wrong, with the place where it is."""


@dataclass(frozen=True)
class Spec:
    """Shape, dtype and place of a tensor, in the words of the file."""

    shape: tuple[int, ...]
    dtype: str
    layout: str
    memory: str

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype} {self.layout} in {self.memory}"


@dataclass(frozen=True)
class Value:
    """A tensor of a program."""

    name: str
    origin: str
    spec: Spec


@dataclass(frozen=True)
class Call:
    """One TT-NN call: its arguments, the values it makes and those that nobody needs after it."""

    op: str
    arguments: dict[str, Any]
    out: list[int]
    frees: list[int]


@dataclass(frozen=True)
class Program:
    """What a slice does on a chip."""

    name: str
    chip: int
    values: dict[int, Value]
    segments: list[tuple[str, list[Call]]]

    def calls(self) -> Iterator[tuple[str, Call]]:
        """All calls in order, each with where it stands."""
        for segment, calls in self.segments:
            for number, call in enumerate(calls):
                yield f"program `{self.name}`, segment `{segment}`, call {number} ({call.op})", call


@dataclass(frozen=True)
class Socket:
    """A way from one chip to another."""

    from_chip: int
    to_chip: int

    def __str__(self) -> str:
        return f"chip {self.from_chip} → chip {self.to_chip}"


@dataclass(frozen=True)
class Export:
    """A file: a machine and what its chips do. Chips are numbered row by row."""

    arch: str
    mesh: tuple[int, int]
    sockets: dict[int, Socket]
    programs: list[Program]


def read(file: Path) -> Export:
    """Reads a file. Raises `Refused` when it is not of this format."""
    try:
        return export(json.loads(file.read_text()))
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{file}: not an exported program of format {FORMAT}: {type(error).__name__} {error}") from error


def export(written: dict[str, Any]) -> Export:
    if written["format"] != FORMAT:
        raise ValueError(f"format is {written['format']}")
    rows, columns = written["mesh"]
    return Export(
        arch=written["arch"],
        mesh=(rows, columns),
        sockets={socket["id"]: Socket(socket["from_chip"], socket["to_chip"]) for socket in written["sockets"]},
        programs=[program(entry) for entry in written["programs"]],
    )


def program(written: dict[str, Any]) -> Program:
    return Program(
        name=written["name"],
        chip=written["chip"],
        values={entry["id"]: value(entry) for entry in written["values"]},
        segments=[(segment["name"], [call(entry) for entry in segment["calls"]]) for segment in written["segments"]],
    )


def value(written: dict[str, Any]) -> Value:
    if written["origin"] not in ORIGINS:
        raise ValueError(f"value `{written['name']}` comes from `{written['origin']}`")
    spec = Spec(tuple(written["shape"]), written["dtype"], written["layout"], written["memory"])
    return Value(written["name"], written["origin"], spec)


def call(written: dict[str, Any]) -> Call:
    # `from` is a word of Python's own, so an operation cannot take an argument of that name.
    arguments = {"source" if name == "from" else name: argument for name, argument in written.items()}
    return Call(op=arguments.pop("op"), out=arguments.pop("out"), frees=arguments.pop("frees"), arguments=arguments)
