"""Replays exported programs on a mock machine: `python replay.py PROGRAMS.json REPORT.json`.

Which machine is said by TT_METAL_MOCK_CLUSTER_DESC_PATH. The report holds the number of calls that were made and, for each
program that does not hold, the first call that shows it. Each place is printed before its call: when TT-NN ends the
process, the last line says where.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import program
from bench import Bench, Run
from machine import machine
from program import Call, Export, Program, Refused, Socket, Spec


class Traffic:
    """What is sent and received on each socket, in order. The mock takes anything; a chip would wait for ever."""

    def __init__(self, sockets: dict[int, Socket]) -> None:
        self.sockets = sockets
        self.sent: dict[int, list[Spec]] = {number: [] for number in sockets}
        self.received: dict[int, list[Spec]] = {number: [] for number in sockets}

    def note(self, place: str, replayed: Program, call: Call) -> None:
        """Notes a send or a receive."""
        number = call.arguments["socket"]
        if number not in self.sockets:
            raise Refused(f"{place}: there is no socket {number}")
        socket = self.sockets[number]
        sends = call.op == "send"
        if replayed.chip != (socket.from_chip if sends else socket.to_chip):
            raise Refused(f"{place}: socket {number} ({socket}) does not {call.op} on chip {replayed.chip}")
        spec = replayed.values[call.arguments["value" if sends else "into"]].spec
        # Each end keeps the tensor where it likes.
        (self.sent if sends else self.received)[number].append(Spec(spec.shape, spec.dtype, spec.layout, "flight"))

    def unmatched(self) -> list[str]:
        """The first tensor of each socket that one end does not expect."""
        found = []
        for number, socket in self.sockets.items():
            both = zip_longest(self.sent[number], self.received[number], fillvalue="nothing")
            for place, (sent, received) in enumerate(both):
                if sent != received:
                    found.append(f"socket {number} ({socket}), tensor {place}: {sent} is sent, {received} is received")
                    break
        return found


def replay(export: Export) -> tuple[int, list[str]]:
    """Replays all programs; gives the number of calls that were made and what does not hold."""
    calls, failures = 0, []
    with machine(export) as chips:
        benches = {number: Bench(chip) for number, chip in chips.items()}
        traffic = Traffic(export.sockets)
        for replayed in export.programs:
            if replayed.chip not in benches:
                failures.append(f"program `{replayed.name}`: the machine has no chip {replayed.chip}")
                continue
            try:
                run = Run(replayed, benches[replayed.chip])
                for place, call in replayed.calls():
                    print(place, flush=True)
                    if call.op in ("send", "receive"):
                        traffic.note(place, replayed, call)
                    run.make(place, call)
                    calls += 1
            except Refused as refused:
                failures.append(str(refused))
            # Before the next one is placed.
            run = None
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
