"""Runs the same requests in LeRobot (PyTorch) and in Tensact, alternately, and prints how they compare."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkpoint import Checkpoint
from load import OtherLoad
from measurements import Mode, Process, as_json, likeness
from side import Answer, Side, SideEnded
from table import table
from works import AT_ONCE, Work, works

HERE = Path(__file__).parent
# What a request takes in LeRobot beside the weights, and a temporary tensor while they are read.
BESIDE_WEIGHTS = 2 * 10**9


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="answers of each kind that a median is of (default: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (default: number of cores)")
    parser.add_argument("--variant", choices=["pi0", "pi05"], default="pi0")
    parser.add_argument(
        "--size",
        choices=["tiny", "small", "base"],
        default="base",
        help="base is the published size (default); the others only show that everything works",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=["bf16", "f32", "compiled"],
        default=["bf16", "f32"],
        help="of LeRobot: all in bf16, all in f32, bf16 with torch.compile (default: bf16 f32)",
    )
    parser.add_argument("--compile", action="store_true", help="with the mode that takes minutes to compile, too")
    parser.add_argument("--json", action="store_true", help="every run as JSON in place of the table")
    parser.add_argument("--tensact", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, required=True, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.runs < 1 or given.threads < 1:
        parser.error("--runs and --threads are at least 1")
    # A mode asked for twice is one mode.
    given.modes = list(dict.fromkeys(given.modes + ["compiled"] * given.compile))
    return given


class Comparison:
    """One checkpoint, and the commands that answer requests for it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.checkpoint = Checkpoint(given.home / f"{given.variant}-{given.size}")
        if not self.checkpoint.folder.exists():
            self._write_checkpoint()
        # Goals are of the published π0.
        judged = given.variant == "pi0" and given.size == "base"
        self.works = works(self.checkpoint, given.home / f"{given.variant}-{given.size}-inputs", judged)

    def _write_checkpoint(self) -> None:
        folder = self.checkpoint.folder
        say(f"writing {folder}")
        # Under another name until it is whole: an interrupted run must not leave half of it.
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [self.given.tensact, "write", self.given.variant, self.given.size, unfinished]
        subprocess.run(command, check=True)
        unfinished.rename(folder)

    def tensact(self) -> Side:
        """Tensact with the checkpoint loaded, in bf16."""
        say("Tensact loads")
        self.checkpoint.warm()
        command = [self.given.tensact, "answer", self.checkpoint.folder, str(self.given.threads)]
        return Side("Tensact", command, self.given.threads)

    def lerobot(self, mode: str) -> Side:
        """LeRobot with the checkpoint loaded."""
        say(f"LeRobot {mode} loads")
        self.checkpoint.warm()
        script = HERE / "lerobot_side.py"
        command = [sys.executable, script, self.checkpoint.folder, str(self.given.threads), mode]
        return Side(f"LeRobot {mode}", command, self.given.threads)

    def measure(self, name: str) -> Mode:
        """All works in a mode, as often as was asked for."""
        with self.tensact() as tensact:
            # Before the question whether LeRobot fits beside it: it reads weights when it needs them.
            first = self.warm_up(tensact)
            if self.fits(name, tensact):
                return self.measure_together(name, tensact, first)
        return self.measure_apart(name)

    def measure_together(self, name: str, tensact: Side, tensact_first: Answer) -> Mode:
        """Request by request in turn."""
        mode = Mode(name, together=True)
        with self.lerobot(name) as lerobot:
            first = self.warm_up(lerobot)
            load = OtherLoad([lerobot, tensact])
            for run in range(self.given.runs):
                for work in self.works:
                    # Whoever comes second finds a warmer machine.
                    for side in (lerobot, tensact) if run % 2 == 0 else (tensact, lerobot):
                        ask(mode, side, work)
                ask_at_once(mode, tensact, self.works[0])
            note_load(mode, load)
            mode.lerobot_process, mode.tensact_process = process(lerobot, first), process(tensact, tensact_first)
        return mode

    def measure_apart(self, name: str) -> Mode:
        """The same where both do not fit into memory: each run loads them anew, one after the other."""
        mode = Mode(name, together=False)
        for _ in range(self.given.runs):
            with self.lerobot(name) as lerobot:
                first = self.warm_up(lerobot)
                load = OtherLoad([lerobot])
                for work in self.works:
                    ask(mode, lerobot, work)
                note_load(mode, load)
                mode.lerobot_process = process(lerobot, first)
            with self.tensact() as tensact:
                first = self.warm_up(tensact)
                load = OtherLoad([tensact])
                for work in self.works:
                    ask(mode, tensact, work)
                ask_at_once(mode, tensact, self.works[0])
                note_load(mode, load)
                mode.tensact_process = process(tensact, first)
        return mode

    def fits(self, mode: str, tensact: Side) -> bool:
        """Whether LeRobot fits beside Tensact, with the weights that Tensact maps left where they are."""
        weights = self.checkpoint.weights.stat().st_size * (2 if mode == "f32" else 1)
        free = memory("MemAvailable")
        return free is None or weights + BESIDE_WEIGHTS <= free - tensact.mapped()

    def warm_up(self, side: Side) -> Answer:
        """An answer that is not part of the medians: of both sides the first one is slower."""
        say(f"{side.name} warms up")
        return side.ask(self.works[0].inputs, self.works[0].steps)


def ask(mode: Mode, side: Side, work: Work) -> None:
    """One answer, noted where it belongs."""
    answer = side.ask(work.inputs, work.steps)
    say(f"{side.name}: {work.name}: {answer.seconds['total']:.3g} s")
    answers = mode.tensact if side.name == "Tensact" else mode.lerobot
    answers.setdefault(work, []).append(answer)


def ask_at_once(mode: Mode, tensact: Side, work: Work) -> None:
    """The answers to several requests in one batch."""
    answer = tensact.ask(work.inputs, work.steps, AT_ONCE)
    say(f"Tensact: {work.name}, {AT_ONCE} at once: {answer.seconds['total']:.3g} s")
    mode.at_once.append(answer)


def note_load(mode: Mode, load: OtherLoad) -> None:
    """How busy others have kept the machine since `load` began."""
    share = load.share()
    if share is not None:
        mode.other_load.append(share)


def process(side: Side, first: Answer) -> Process:
    """What a side took so far."""
    return Process(side.load_s, first.seconds["total"], side.loading_peak, side.peak())


def memory(key: str) -> int | None:
    """Bytes of a line of /proc/meminfo, which only Linux has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def machine(threads: int) -> dict[str, Any]:
    """What the numbers are of."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else name
    total = memory("MemTotal")
    room = {} if total is None else {"memory": f"{total / 1e9:.0f} GB"}
    versions = {package: version(package) for package in ["lerobot", "torch", "transformers"]}
    return {"CPU": name, "cores": os.cpu_count(), **room, "threads": threads, **versions}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    given = arguments()
    comparison = Comparison(given)
    try:
        modes = [comparison.measure(name) for name in given.modes]
    except SideEnded as ended:
        sys.exit(str(ended))
    if given.json:
        print(json.dumps(as_json(machine(given.threads), comparison.works, modes), indent=2))
    else:
        print(table(machine(given.threads), comparison.works, modes))
    if not all(likeness(mode, work).same_work for mode in modes for work in comparison.works):
        sys.exit("the sides did not compute the same actions")


if __name__ == "__main__":
    main()
