"""Replays exported programs on a mock machine: `python replay.py PROGRAMS.json REPORT.json`.

Which machine is said by TT_METAL_MOCK_CLUSTER_DESC_PATH. The report holds the number of calls and, for each program that
does not hold, the first call that shows it. Each place is printed before its call: when TT-NN ends the process, the last
line says where.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import program
from core_memory import CoreMemory, buffer_bytes
from machine import machine, said
from operations import DTYPES, LAYOUTS, MEMORIES, OPERATIONS, Chip, Tensor
from program import Call, Export, Program, Refused, Socket, Spec


def spec_of(tensor: Tensor) -> Spec:
    """What TT-NN gave, in the words of the file."""

    def word(words: dict[str, Any], meant: Any) -> str:
        return next((word for word, ours in words.items() if ours == meant), str(meant))

    return Spec(
        tuple(tensor.shape),
        word(DTYPES, tensor.dtype),
        word(LAYOUTS, tensor.layout),
        word(MEMORIES, tensor.memory_config()),
    )


class Traffic:
    """What is sent and received on each socket: the mock takes anything, a chip would wait for ever."""

    def __init__(self, sockets: dict[int, Socket]) -> None:
        self.sockets = sockets
        self.sent: dict[int, set[Spec]] = {number: set() for number in sockets}
        self.received: dict[int, set[Spec]] = {number: set() for number in sockets}

    def note(self, place: str, chip: int, call: Call, spec: Spec) -> None:
        """Notes a send or a receive of a tensor."""
        number = call.arguments["socket"]
        if number not in self.sockets:
            raise Refused(f"{place}: there is no socket {number}")
        socket = self.sockets[number]
        end = socket.from_chip if call.op == "send" else socket.to_chip
        if chip != end:
            raise Refused(f"{place}: socket {number} ({socket}) does not {call.op} on chip {chip}")
        # Each end keeps the tensor where it likes.
        noted = self.sent if call.op == "send" else self.received
        noted[number].add(Spec(spec.shape, spec.dtype, spec.layout, "flight"))

    def unmatched(self) -> list[str]:
        """What one end sends and the other does not receive, or the other way round."""
        found = []
        for number, socket in self.sockets.items():
            for spec in self.sent[number] - self.received[number]:
                found.append(f"socket {number} ({socket}): {spec} is sent and never received")
            for spec in self.received[number] - self.sent[number]:
                found.append(f"socket {number} ({socket}): {spec} is received and never sent")
        return found


class Bench:
    """One chip with what stays on it: the weights of all its programs, which share them by name."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.memory = CoreMemory(chip)
        self.weights: dict[tuple[str, Spec], Tensor] = {}
        self.buffers: dict[str, int] = {}

    def place(self, value: program.Value) -> Tensor:
        """The tensor that a program finds when it starts."""
        if value.origin != "weight":
            return self.chip.empty(value.spec)
        key = (value.name, value.spec)
        if key not in self.weights:
            self.weights[key] = self.chip.empty(value.spec)
        return self.weights[key]

    def replay(self, replayed: Program, traffic: Traffic) -> int:
        """Makes all calls of a program and gives their number. Raises `Refused` at the first that does not hold."""
        tensors: dict[int, Tensor] = {}
        for number, value in replayed.values.items():
            if value.origin == "call":
                continue
            try:
                tensors[number] = self.place(value)
            except RuntimeError as error:
                raise Refused(
                    f"program `{replayed.name}`: {value.origin} `{value.name}`, {value.spec}: TT-NN says: {said(error)}"
                ) from error
        calls = 0
        for place, call in replayed.calls():
            print(place, flush=True)
            self.call(place, call, replayed, tensors)
            if call.op in ("send", "receive"):
                number = call.arguments["value" if call.op == "send" else "into"]
                traffic.note(place, replayed.chip, call, replayed.values[number].spec)
            calls += 1
        return calls

    def call(self, place: str, call: Call, replayed: Program, tensors: dict[int, Tensor]) -> None:
        """Makes one call: `tensors` gains its results and loses what it frees."""
        if call.op not in OPERATIONS:
            raise Refused(f"{place}: TT-NN is never asked for `{call.op}`")
        operation = OPERATIONS[call.op]
        arguments = dict(call.arguments)
        given = {}
        for name in operation.tensors:
            arguments[name], given[name] = resolved(place, arguments.get(name), replayed, tensors)
        declared = [replayed.values[number].spec for number in call.out]
        run = partial(operation.run, self.chip, declared, **arguments)
        asked = f"{place} of " + ", ".join(f"{name} {spec}" for name, spec in given.items() if spec)

        try:
            inspect.signature(operation.run).bind(self.chip, declared, **arguments)
            # Sockets remember what went through them, so nothing is sent twice.
            buffers = 0 if call.op in ("send", "receive") else self.buffers_of(call, given, declared, run)
            results = run()
        except (RuntimeError, TypeError, KeyError, IndexError) as error:
            raise Refused(f"{asked}: TT-NN says: {said(error) or type(error).__name__}") from error

        found = [spec_of(result) for result in results]
        if found != declared:
            raise Refused(f"{asked}: declared {', '.join(map(str, declared))}; TT-NN gives {', '.join(map(str, found))}")
        tensors.update(zip(call.out, results))
        room = self.memory.room([*tensors.values(), *self.weights.values()])
        if buffers > room:
            raise Refused(f"{asked}: its circular buffers take {buffers} B of each core's L1, tensors there leave {room} B")
        for number in call.frees:
            if tensors.pop(number, None) is None:
                raise Refused(f"{place}: frees value {number}, which is not there")

    def buffers_of(self, call: Call, given: dict[str, Any], declared: list[Spec], run: Any) -> int:
        """Circular-buffer bytes per core of a call; equal calls are measured once."""
        others = {name: argument for name, argument in call.arguments.items() if name not in given}
        key = f"{call.op} {given} {others} {declared}"
        if key not in self.buffers:
            self.buffers[key] = buffer_bytes(run)
        return self.buffers[key]


def resolved(place: str, number: Any, replayed: Program, tensors: dict[int, Tensor]) -> tuple[Any, Any]:
    """The tensor of a number and its declared spec; a list for a list, nothing for nothing."""
    if number is None:
        return None, None
    if isinstance(number, list):
        both = [resolved(place, part, replayed, tensors) for part in number]
        return [tensor for tensor, _ in both], " + ".join(str(spec) for _, spec in both)
    if number not in tensors:
        raise Refused(f"{place}: uses value {number}, which is not there")
    return tensors[number], replayed.values[number].spec


def replay(export: Export) -> tuple[int, list[str]]:
    """Replays all programs; gives the number of calls that hold and what does not."""
    calls, failures = 0, []
    with machine(export) as chips:
        benches = {number: Bench(chip) for number, chip in chips.items()}
        traffic = Traffic(export.sockets)
        for replayed in export.programs:
            if replayed.chip not in benches:
                failures.append(f"program `{replayed.name}`: the machine has no chip {replayed.chip}")
                continue
            try:
                calls += benches[replayed.chip].replay(replayed, traffic)
            except Refused as refused:
                failures.append(str(refused))
        if not failures:
            failures = traffic.unmatched()
        # Tensors go before the machine they are on.
        benches.clear()
    return calls, failures


def main(programs: Path, report: Path) -> None:
    faulthandler.enable()
    try:
        calls, failures = replay(program.read(programs))
    except Refused as refused:
        calls, failures = 0, [str(refused)]
    report.write_text(json.dumps({"ttnn": version("ttnn"), "calls": calls, "failures": failures}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: replay.py PROGRAMS.json REPORT.json")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
