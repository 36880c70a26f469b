"""How busy the machine was with something else, which makes every number a guess."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from side import Side


class OtherLoad:
    """The share of all cores that went to others than the sides, since this was made; only Linux tells."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides
        self.began, self.all, self.own = time.monotonic(), busy(), own(sides)

    def share(self) -> float | None:
        """Between 0 and 1. What a hypervisor gave to other machines counts."""
        everything, ours = busy(), own(self.sides)
        if None in (everything, ours, self.all, self.own):
            return None
        others = (everything - self.all) - (ours - self.own)
        return max(0.0, others / ((time.monotonic() - self.began) * (os.cpu_count() or 1)))


def busy() -> float | None:
    """Seconds that all cores were not idle."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own(sides: Sequence[Side]) -> float | None:
    """Seconds that the sides' processes had."""
    try:
        stats = [Path(f"/proc/{side.process.pid}/stat").read_text() for side in sides]
    except OSError:
        return None
    # The name before the parenthesis may hold spaces.
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")
