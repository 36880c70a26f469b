#!/usr/bin/env python3
"""A robot arm's control loop against `tensact serve`, with and without real-time chunking.

The loop never waits for the policy: at every tick it takes the next action of the chunk that it has, while a thread
asks for the next chunk. That one was computed from what the arm saw some ticks ago, so its first actions are late and
are left out. Without real-time chunking (RTC) the arm then jumps from one plan to another; with it, the server makes
the new chunk go on where the old one will be by then.

    tensact serve --checkpoint ./tiny
    python examples/arm.py --plot arm.png

README.md beside this file says which policy suits it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy


@dataclass
class Settings:
    """How the arm moves and asks."""

    hz: float
    speed: float
    steps: int
    replan: int | None
    lag_ms: float
    noise: str
    seed: int
    prompt: str

    @property
    def period(self) -> float:
        """Seconds between two ticks."""
        return 1 / (self.hz * self.speed)


@dataclass
class Run:
    """What happened in one run."""

    rtc: str
    positions: list[np.ndarray] = field(default_factory=list)
    # Ticks at which a chunk took over, and those from which on it was awaited.
    borders: list[int] = field(default_factory=list)
    awaited: list[int] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    held: int = 0

    def steps(self) -> np.ndarray:
        """How far the joint that moved most went, tick by tick."""
        moved = np.abs(np.diff(np.array(self.positions), axis=0))
        return np.concatenate([[0.0], moved.max(axis=1)])

    def jump(self) -> float:
        """The largest step from one chunk to the next."""
        return float(max((self.steps()[tick] for tick in self.borders), default=0.0))

    def within(self) -> float:
        """The largest step inside a chunk."""
        return float(np.delete(self.steps(), self.borders).max(initial=0.0))


class Arm:
    """Joints that follow their commands, and cameras that see a scene which changes as they move."""

    def __init__(self, joints: int, cameras: list[str]):
        self.positions = np.zeros(joints, np.float32)
        self.cameras = cameras
        self._rows, self._columns = np.mgrid[0:96, 0:128].astype(np.float32)

    def follow(self, command: np.ndarray) -> None:
        """Moves to a command within one tick."""
        self.positions = command.astype(np.float32)

    def image(self, camera: int, tick: int) -> np.ndarray:
        """A background that drifts and a bright spot where the hand is."""
        phase = 0.02 * tick + camera
        rows, columns = self._rows, self._columns
        scene = np.stack([np.sin(rows / 9 + phase), np.sin(columns / 13 - phase), np.cos((rows + columns) / 17)], -1)
        reach = np.tanh(self.positions[:2]) if len(self.positions) > 1 else np.zeros(2)
        hand = np.hypot(rows - 48 * (1 + reach[0] / 2), columns - 64 * (1 + reach[1] / 2)) < 8
        return np.where(hand[..., None], 255, 96 + 64 * scene).astype(np.uint8)

    def observe(self, tick: int, prompt: str) -> dict[str, Any]:
        """What the profile `generic` takes."""
        images = {f"images/{name}": self.image(place, tick) for place, name in enumerate(self.cameras)}
        return images | {"state": self.positions.copy(), "prompt": prompt}


class Planner:
    """Asks for chunks in a thread of its own and hands their actions out, one a tick."""

    def __init__(self, policy: WebsocketClientPolicy, rtc: str, settings: Settings, run: Run):
        about = policy.get_server_metadata()["tensact"]
        self.horizon, self.joints = int(about["horizon"]), int(about["action_dims"])
        self.policy, self.rtc, self.settings, self.run = policy, rtc, settings, run
        # The policy's own shape: it may have more dimensions than the robot.
        self.noise_shape = (int(about["noise"][0]), int(about["noise"][1]))
        self.replan = settings.replan or max(1, self.horizon // 3)
        self.rng = np.random.default_rng(settings.seed)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.asked: Future[np.ndarray] | None = None
        self.asked_at = 0
        # The chunk that is being executed, and the tick of its first action.
        self.chunk = np.zeros((0, self.joints), np.float32)
        self.begins = 0
        # The slowest of the last answers, in ticks: what the next one may take.
        self.recent: deque[int] = deque(maxlen=10)

    def ask(self, observation: dict[str, Any], tick: int) -> None:
        """Sends an observation; the actions of its answer are for `tick` and the ticks after it."""
        # Another seed each time, as policies that are trained disagree with themselves from chunk to chunk.
        seed = int(self.rng.integers(2**31))
        if self.settings.noise == "smooth":
            observation["noise"] = smooth_noise(seed, self.noise_shape, self.settings.hz)
        else:
            observation["seed"] = seed
        executed = tick - self.begins
        if 0 < executed < len(self.chunk):
            if self.rtc == "client":
                rest = self.chunk[executed:]
                delay = max(self.recent, default=0)
                observation["rtc"] = {"prev_chunk": rest, "inference_delay": delay, "execution_horizon": len(rest)}
            elif self.rtc == "server":
                observation["rtc"] = {"executed": executed}
        self.asked_at = tick
        self.asked = self.thread.submit(self.answer, observation)

    def answer(self, observation: dict[str, Any]) -> np.ndarray:
        """Waits for the answer, off the control loop."""
        began = time.perf_counter()
        actions = self.policy.infer(observation)["actions"]
        time.sleep(self.settings.lag_ms / 1000)
        self.run.latencies_ms.append((time.perf_counter() - began) * 1000)
        return actions

    def take_over(self, tick: int) -> None:
        """Goes on with the new chunk, if it is there; its actions for ticks gone by are left out."""
        if not self.asked or not self.asked.done():
            return
        actions, self.asked = self.asked.result(), None
        delay = tick - self.asked_at
        self.recent.append(delay)
        if delay >= len(actions):
            return  # Everything in it is late; the next one is asked for at once.
        if len(self.chunk):
            self.run.delays.append(delay)
            self.run.borders.append(tick)
            self.run.awaited.append(self.asked_at)
        self.chunk, self.begins = actions, self.asked_at

    def command(self, tick: int) -> np.ndarray | None:
        """The action for a tick; none when the chunk is used up."""
        place = tick - self.begins
        return self.chunk[place] if place < len(self.chunk) else None

    def is_due(self, tick: int) -> bool:
        """Whether to ask for the next chunk."""
        return self.asked is None and tick - self.begins >= self.replan


def smooth_noise(seed: int, shape: tuple[int, int], hz: float) -> np.ndarray:
    """Noise that turns slowly, so that a policy with random weights, which hands most of it through, moves smoothly."""
    rng = np.random.default_rng(seed)
    horizon, dims = shape
    seconds = np.arange(horizon)[:, None, None] / hz
    rates = np.array([0.2, 0.45, 0.7])
    phases = rng.uniform(0, 2 * np.pi, (dims, len(rates)))
    waves = np.sin(2 * np.pi * rates * seconds + phases) * rng.standard_normal((dims, len(rates)))
    return (waves.sum(-1) * math.sqrt(2 / len(rates))).astype(np.float32)


def control(policy: WebsocketClientPolicy, rtc: str, settings: Settings) -> Run:
    """Moves the arm for so many ticks."""
    run = Run(rtc)
    planner = Planner(policy, rtc, settings, run)
    about = policy.get_server_metadata()["tensact"]
    arm = Arm(planner.joints, list(about["cameras"]))
    # Nothing moves before the first chunk is there.
    planner.ask(arm.observe(0, settings.prompt), 0)
    assert planner.asked
    planner.asked.result()
    planner.take_over(0)
    planner.recent.append(math.ceil(run.latencies_ms[0] / 1000 / settings.period))

    began = time.perf_counter()
    for tick in range(settings.steps):
        planner.take_over(tick)
        command = planner.command(tick)
        if command is None:
            run.held += 1
        else:
            arm.follow(command)
        run.positions.append(arm.positions)
        if planner.is_due(tick + 1):
            planner.ask(arm.observe(tick, settings.prompt), tick + 1)
        time.sleep(max(0.0, began + (tick + 1) * settings.period - time.perf_counter()))
    planner.thread.shutdown()
    return run


def summary(runs: list[Run], settings: Settings) -> str:
    """What the runs have shown, in words."""
    lines = []
    for run in runs:
        delays = run.delays or [0]
        lines.append(
            f"{run.rtc + ':':<7} {len(run.borders)} chunk borders, largest jump {run.jump():.3f} "
            f"(inside chunks {run.within():.3f}); answers took {np.median(run.latencies_ms):.0f} ms, "
            f"{np.median(delays):.0f} to {max(delays)} ticks of {1000 * settings.period:.0f} ms; "
            f"{run.held} ticks without an action"
        )
    without = next((run for run in runs if run.rtc == "off" and run.borders), None)
    for run in runs:
        if without and run.rtc != "off" and run.jump() > 0:
            ratio = without.jump() / run.jump()
            lines.append(
                f"largest jump at a border: {without.jump():.3f} off, {run.jump():.3f} {run.rtc}, "
                f"{ratio:.1f} times less"
            )
    return "\n".join(lines)


def plot(runs: list[Run], settings: Settings, path: Path) -> None:
    """Draws what the joints did, run by run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ink, faint, red = "#1f2933", "#9aa5b1", "#d64545"
    figure, axes = plt.subplots(len(runs), 1, figsize=(11, 3.6 * len(runs)), sharex=True, sharey=True, squeeze=False)
    for axis, run in zip(axes[:, 0], runs, strict=True):
        positions = np.array(run.positions)
        seconds = np.arange(len(positions)) / settings.hz
        colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, positions.shape[1]))
        for asked, border in zip(run.awaited, run.borders, strict=True):
            axis.axvspan(
                (asked - 0.5) / settings.hz, (border - 0.5) / settings.hz, color=faint, alpha=0.18, linewidth=0
            )
            axis.axvline((border - 0.5) / settings.hz, color=faint, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            # The step over the border, of every joint.
            axis.plot(
                seconds[border - 1 : border + 1], positions[border - 1 : border + 1], color=red, linewidth=1.8, zorder=3
            )
        for joint, colour in enumerate(colours):
            axis.plot(seconds, positions[:, joint], color=colour, linewidth=1.5, zorder=2)
        name = "without real-time chunking" if run.rtc == "off" else f"with real-time chunking ({run.rtc})"
        axis.set_title(name, loc="left", fontsize=12, fontweight="bold", color=ink)
        told = f"largest jump at a border {run.jump():.2f}, largest step inside a chunk {run.within():.2f}"
        axis.set_title(told, loc="right", fontsize=10, color=ink)
        axis.set_ylabel("joint position")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    axes[-1, 0].set_xlabel(
        "seconds of control; grey: the next chunk is being computed, dashed: it takes over, red: the step to it"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="host, or a ws:// or wss:// address (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--api-key", help="if the server asks for one")
    parser.add_argument(
        "--rtc",
        choices=["off", "client", "server"],
        action="append",
        help="who remembers the last chunk; `server` needs `tensact serve --rtc server --control-hz HZ`. "
        "May be given several times, a run each (off and client)",
    )
    parser.add_argument("--hz", type=float, default=30.0, help="actions in a second (%(default)s)")
    parser.add_argument("--steps", type=int, default=180, help="actions of each run (%(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than real time (%(default)s)")
    parser.add_argument(
        "--replan", type=int, metavar="N", help="ask again after N actions of a chunk (a third of them)"
    )
    parser.add_argument(
        "--lag-ms", type=float, default=0.0, help="answers come later, as over a slow network (%(default)s)"
    )
    parser.add_argument(
        "--noise",
        choices=["smooth", "seed"],
        default="smooth",
        help="what a chunk is made from: noise that turns slowly, for policies with random weights, or a seed, "
        "for trained ones (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--prompt", default="pick up the block", help="(%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the joints, as PNG or SVG")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[Run]:
    options = arguments(words)
    settings = Settings(
        options.hz,
        options.speed,
        options.steps,
        options.replan,
        options.lag_ms,
        options.noise,
        options.seed,
        options.prompt,
    )
    runs = []
    for rtc in options.rtc or ["off", "client"]:
        # A connection for each run: the server remembers chunks by connection.
        policy = WebsocketClientPolicy(options.host, options.port, options.api_key)
        runs.append(control(policy, rtc, settings))
    print(summary(runs, settings))
    if options.plot:
        plot(runs, settings, options.plot)
        print(f"drew {options.plot}")
    return runs


if __name__ == "__main__":
    main()
