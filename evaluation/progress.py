"""How far an evaluation is, and what it has found so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from evaluation.plan import Plan
from evaluation.worker import Picture

SUMMARY_EVERY = 60.0
"""Seconds."""


class Progress:
    """A bar over all pictures with the time that is left, and now and then the means so far.

    Args:
        plan: what is evaluated.
        total: pictures altogether.
        done: those that were there at the start.
    """

    def __init__(self, plan: Plan, total: int, done: int) -> None:
        self._plan = plan
        self._sums = np.zeros((len(plan.pairs), len(plan.cells), len(plan.rewards)))
        self._counts = np.zeros((len(plan.pairs), len(plan.cells), 1))
        self._bar = tqdm(total=total, initial=done, unit="img", smoothing=0.05, file=sys.stderr, dynamic_ncols=True)
        self._shown = time.monotonic()

    def add(self, pair: int, pictures: Sequence[Picture]) -> None:
        for picture in pictures:
            self._sums[pair, picture.cell] += picture.scores
            self._counts[pair, picture.cell] += 1
        self._bar.update(len(pictures))
        if time.monotonic() - self._shown > SUMMARY_EVERY and self._plan.rewards:
            self._shown = time.monotonic()
            for line in self._lines():
                self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def _lines(self) -> list[str]:
        """Means of this run's pictures, a line for each pair and reward."""
        means = self._sums / np.maximum(self._counts, 1)
        return [
            f"  {pair.name}, {reward.name} so far: "
            + ", ".join(
                f"{cell} → {means[p, c, r]:.4g}" for c, cell in enumerate(self._plan.cells) if self._counts[p, c]
            )
            for p, pair in enumerate(self._plan.pairs)
            for r, reward in enumerate(self._plan.rewards)
            if self._counts[p].any()
        ]
