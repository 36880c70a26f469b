"""What was measured, and what follows from it: medians, ratios, and whether both sides computed the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from side import STAGES, Answer
from works import AT_ONCE, BATCH, Work

LINES = (*STAGES, "one step", "total")
# bf16 against bf16 at full size; two policies, or two inputs, are far below.
LEAST_CORRELATION = 0.99


@dataclass
class Process:
    """What loading a policy took, and what it keeps."""

    load_s: float
    # The first answer, which reads what loading has put off, and compiles.
    first_s: float
    loading_peak: int | None
    running_peak: int | None


@dataclass
class Mode:
    """One mode of LeRobot and the Tensact requests between its own."""

    name: str
    # Whether both were in memory at the same time, so that requests alternate; otherwise whole runs do.
    together: bool
    lerobot: dict[Work, list[Answer]] = field(default_factory=dict)
    tensact: dict[Work, list[Answer]] = field(default_factory=dict)
    at_once: list[Answer] = field(default_factory=list)
    # Shares of the machine that something else had while answers were timed.
    other_load: list[float] = field(default_factory=list)
    lerobot_process: Process | None = None
    tensact_process: Process | None = None


@dataclass(frozen=True)
class Line:
    """A stage of a work: LeRobot's seconds by mode, Tensact's beside the fastest of them."""

    stage: str
    lerobot: dict[str, float]
    tensact: float
    fastest: str
    goal: float | None

    @property
    def ratio(self) -> float:
        return self.tensact / self.lerobot[self.fastest]


@dataclass(frozen=True)
class Likeness:
    """How close Tensact's actions are to LeRobot's."""

    correlation: float
    norm_ratio: float

    @property
    def same_work(self) -> bool:
        return self.correlation >= LEAST_CORRELATION and abs(self.norm_ratio - 1) <= 1 - LEAST_CORRELATION


def middle(answers: list[Answer], stage: str) -> float:
    """Median seconds of a stage."""
    return median(answer.seconds[stage] for answer in answers)


def lines(modes: list[Mode], work: Work) -> list[Line]:
    """All stages of a work. Each is held against the mode that is fastest at it."""
    made = []
    for stage in LINES:
        seconds = {mode.name: middle(mode.lerobot[work], stage) for mode in modes}
        fastest = min(modes, key=lambda mode: seconds[mode.name])
        tensact = middle(fastest.tensact[work], stage)
        made.append(Line(stage, seconds, tensact, fastest.name, work.goals.get(stage)))
    return made


def at_once(modes: list[Mode], full: Work) -> tuple[float, float]:
    """Median seconds of `AT_ONCE` single requests and of one batch of as many."""
    single = median(answer.seconds["total"] for mode in modes for answer in mode.tensact[full])
    return AT_ONCE * single, median(answer.seconds["total"] for mode in modes for answer in mode.at_once)


def likeness(mode: Mode, work: Work) -> Likeness:
    """Of the first answers: all are of the same inputs."""
    ours, theirs = (np.asarray(answers[work][0].actions) for answers in (mode.tensact, mode.lerobot))
    correlation = np.corrcoef(ours, theirs)[0, 1]
    return Likeness(float(correlation), float(np.linalg.norm(ours) / np.linalg.norm(theirs)))


def as_json(machine: dict[str, Any], works: list[Work], modes: list[Mode]) -> dict[str, Any]:
    """Everything, runs one by one too."""
    singles, batch = at_once(modes, works[0])

    def seconds(answers: list[Answer]) -> list[dict[str, float]]:
        return [answer.seconds for answer in answers]

    return {
        "machine": machine,
        "works": [
            {
                "work": work.name,
                "lines": [vars(line) | {"ratio": line.ratio} for line in lines(modes, work)],
                "actions": {mode.name: vars(likeness(mode, work)) for mode in modes},
                "runs": {
                    mode.name: {"lerobot": seconds(mode.lerobot[work]), "tensact": seconds(mode.tensact[work])}
                    for mode in modes
                },
            }
            for work in works
        ],
        "at_once": {
            "requests": AT_ONCE,
            "singles_s": singles,
            "batch_s": batch,
            "ratio": batch / singles,
            "goal": works[0].goals.get(BATCH),
        },
        "processes": {
            mode.name: {
                "together": mode.together,
                "other_load": mode.other_load,
                "lerobot": vars(mode.lerobot_process),
                "tensact": vars(mode.tensact_process),
            }
            for mode in modes
        },
    }
