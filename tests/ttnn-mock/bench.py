"""One mock chip and the programs that are replayed on it, call by call."""

from __future__ import annotations

from typing import Any

from machine import said
from operations import DTYPES, LAYOUTS, MEMORIES, OPERATIONS, Chip, Tensor
from program import Call, Program, Refused, Spec, Value


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


class Bench:
    """A chip with what stays on it: the weights of all its programs, which share them by name."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.weights: dict[tuple[str, Spec], Tensor] = {}

    def tensor(self, value: Value) -> Tensor:
        """The tensor that a program finds when it starts."""
        if value.origin != "weight":
            return self.chip.empty(value.spec)
        key = (value.name, value.spec)
        if key not in self.weights:
            self.weights[key] = self.chip.empty(value.spec)
        return self.weights[key]


class Run:
    """A program on a bench, from its first call to its last."""

    def __init__(self, program: Program, bench: Bench) -> None:
        self.program = program
        self.bench = bench
        self.tensors: dict[int, Tensor] = {}
        for number, value in program.values.items():
            if value.origin == "call":
                continue
            try:
                self.tensors[number] = bench.tensor(value)
            except RuntimeError as error:
                place = f"program `{program.name}`: {value.origin} `{value.name}`, {value.spec}"
                raise Refused(f"{place}: {said(error)}") from error

    def make(self, place: str, call: Call) -> None:
        """Makes a call. Raises `Refused` when TT-NN refuses it or gives something else than the program declares."""
        if call.op not in OPERATIONS:
            raise Refused(f"{place}: TT-NN is never asked for `{call.op}`")
        operation = OPERATIONS[call.op]
        arguments = dict(call.arguments)
        for name in operation.tensors:
            arguments[name] = self.found(place, arguments.get(name))
        declared = [self.program.values[number].spec for number in call.out]
        given = {name: self.spec(call.arguments.get(name)) for name in operation.tensors}
        asked = f"{place} of " + ", ".join(f"{name} {spec}" for name, spec in given.items() if spec)

        try:
            results = operation.run(self.bench.chip, declared, **arguments)
        except (RuntimeError, TypeError, KeyError) as error:
            raise Refused(f"{asked}: {said(error)}") from error

        got = [spec_of(result) for result in results]
        if got != declared:
            raise Refused(f"{asked}: declared {', '.join(map(str, declared))}; TT-NN gives {', '.join(map(str, got))}")
        self.tensors.update(zip(call.out, results))
        for number in call.frees:
            self.found(place, number)
            del self.tensors[number]

    def found(self, place: str, number: Any) -> Any:
        """The tensor of a number, the list of a list, nothing for nothing."""
        if number is None:
            return None
        if isinstance(number, list):
            return [self.found(place, part) for part in number]
        if number not in self.tensors:
            raise Refused(f"{place}: value {number} is not there: not yet made, or freed")
        return self.tensors[number]

    def spec(self, number: Any) -> str:
        """What is declared of it, or of all in a list."""
        if number is None:
            return ""
        if isinstance(number, list):
            return " + ".join(map(self.spec, number))
        return str(self.program.values[number].spec)
