"""Measurements as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from measurements import Line, Mode, Process, at_once, likeness, lines
from works import AT_ONCE, BATCH, Work

FIRST, OTHERS = 42, 20
# Threads that wait for each other suffer more than the share that something else takes.
QUIET = 0.03


def table(machine: dict[str, Any], works: list[Work], modes: list[Mode]) -> str:
    """All of it."""
    lerobot = [f"LeRobot {mode.name}" for mode in modes]
    parts = [", ".join(f"{key} {value}" for key, value in machine.items())]
    for work in works:
        parts += ["", row(f"{work.name}, {work.steps} steps", [*lerobot, "Tensact"], "Tensact / fastest LeRobot")]
        parts += [*(timed(line) for line in lines(modes, work)), *alike(modes, work)]
    singles, batch = at_once(modes, works[0])
    verdict = judged(batch / singles, works[0].goals.get(BATCH))
    parts += [
        "",
        row(f"Tensact, {works[0].name}", [f"{AT_ONCE} singly", f"{AT_ONCE} at once"], "at once / singly"),
        row("  total", [seconds(singles), seconds(batch)], verdict),
        "",
        row("process", [*lerobot, *(f"Tensact ({mode.name})" for mode in modes)]),
        processes("  load, file in memory", modes, lambda process: seconds(process.load_s)),
        processes("  first answer after that", modes, lambda process: seconds(process.first_s)),
        processes("  peak memory while loading", modes, lambda process: gigabytes(process.loading_peak)),
        processes("  peak memory afterwards", modes, lambda process: gigabytes(process.running_peak)),
    ]
    if loads := [share for mode in modes for share in mode.other_load]:
        parts += ["", f"Something else had at most {max(loads):.0%} of the machine{disturbed(max(loads))}"]
    if apart := [mode.name for mode in modes if not mode.together]:
        parts.append(f"Both did not fit into memory, so runs were alternated, not requests: {', '.join(apart)}.")
    return "\n".join(parts)


def disturbed(share: float) -> str:
    """What to think of it."""
    return "." if share < QUIET else ": too much for ratios that mean something. Run again on a quiet machine."


def row(first: str, others: Iterable[str], last: str = "") -> str:
    """A row of the table; its last cell is as long as it likes."""
    return (first.ljust(FIRST) + "".join(other.rjust(OTHERS) for other in others) + "   " + last).rstrip()


def timed(line: Line) -> str:
    """A stage of a work."""
    cells = [*map(seconds, line.lerobot.values()), seconds(line.tensact)]
    return row(f"  {line.stage}", cells, f"{judged(line.ratio, line.goal)}, {line.fastest}")


def alike(modes: list[Mode], work: Work) -> list[str]:
    """How close the actions are, and a warning where they are not."""
    found = [likeness(mode, work) for mode in modes]
    shown = [
        row("  correlation of the actions", (f"{of.correlation:.5f}" for of in found)),
        row("  ratio of their norms", (f"{of.norm_ratio:.4f}" for of in found)),
    ]
    if not all(of.same_work for of in found):
        shown.append("  NOT THE SAME WORK: the actions differ, so the times say nothing")
    return shown


def processes(name: str, modes: list[Mode], cell: Callable[[Process], str]) -> str:
    """A property of all processes: LeRobot's, then Tensact's beside each."""
    all_processes = [*(mode.lerobot_process for mode in modes), *(mode.tensact_process for mode in modes)]
    return row(name, (cell(process) if process else "-" for process in all_processes))


def judged(ratio: float, goal: float | None) -> str:
    """A ratio, and whether it is as small as it should be."""
    return f"{ratio:.2f}" if goal is None else f"{ratio:.2f} ({'meets' if ratio <= goal else 'misses'} {goal:.2f})"


def seconds(value: float) -> str:
    """Three digits, which is more than runs agree on."""
    number, unit = (value, "s") if value >= 1 else (value * 1000, "ms")
    return f"{number:#.3g}".rstrip(".") + f" {unit}"


def gigabytes(value: int | None) -> str:
    """Of 10^9 bytes."""
    return "-" if value is None else f"{value / 1e9:.2f} GB"
