"""Interleaved timing: every round runs every method once, so that what else the machine does hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .task import Method, Task

MIN_ROUNDS = 3
Seconds = Mapping[str, Sequence[float]]  # method → one entry per round


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timings:
    """What an Euler step took, by the clock on the wall and as CPU time, and the set-up of a run."""

    wall: Seconds
    cpu: Seconds
    set_up: Seconds

    @property
    def rounds(self) -> int:
        return len(next(iter(self.wall.values())))


def ratio(seconds: Seconds, method: str, reference: str) -> Spread:
    """Of each round's own ratio, which cancels what slowed that round down as a whole."""
    return Spread.of([a / b for a, b in zip(seconds[method], seconds[reference], strict=True)])


def interleaved(
    methods: Mapping[str, Method], task: Task, rounds: int, budget: float, progress: Callable[[int], None]
) -> Timings:
    """Run all methods round by round, in a new order each time.

    The methods are warm: the caller has run each once.

    Args:
        rounds: how many rounds at most.
        budget: seconds after which no round begins, once there are `MIN_ROUNDS`.
        progress: called with the number of rounds done.
    """
    order = random.Random(0)
    wall, cpu, set_up = ({name: [] for name in methods} for _ in range(3))
    start = time.perf_counter()
    for done in range(1, rounds + 1):
        for name in order.sample(list(methods), len(methods)):
            sample = methods[name].sample(task)
            wall[name].append(sample.steps.wall / task.steps)
            cpu[name].append(sample.steps.cpu / task.steps)
            set_up[name].append(sample.set_up)
        progress(done)
        if done >= MIN_ROUNDS and (time.perf_counter() - start) * (done + 1) / done > budget:
            break
    return Timings(wall, cpu, set_up)
