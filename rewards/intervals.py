"""Means with confidence intervals, and win rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95
RESAMPLES = 4000
_AT_A_TIME = 50
_SEED = 0
"""Of the draws, so that the same scores have the same interval whenever they are summed up."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval; low and high are None where a single value tells nothing about it."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


def student(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval of values that are independent: for the few of a sweep."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * math.sqrt(variance / len(values))
    return Estimate(mean, float(mean - half), float(mean + half))


def bootstrap(values: np.ndarray) -> Estimate:
    """Mean of `values` (prompts,) or (prompts, seeds), with a percentile bootstrap over prompts: for many of them.

    Pictures of one prompt are not independent, so whole prompts are drawn.
    """
    of_prompts = values.reshape(len(values), -1).mean(axis=1)
    (found,) = bootstraps(of_prompts[:, None])
    return found


def bootstraps(values: np.ndarray) -> list[Estimate]:
    """Of each column of `values`, (prompts, quantities), from the same draws of prompts."""
    means = values.mean(axis=0).tolist()
    prompts = len(values)
    if prompts < 2:
        return [Estimate(mean, None, None) for mean in means]
    rng = np.random.default_rng(_SEED)
    drawn = []
    for first in range(0, RESAMPLES, _AT_A_TIME):  # all of them at once would not fit for thousands of prompts
        draws = rng.integers(prompts, size=(min(_AT_A_TIME, RESAMPLES - first), prompts))
        counts = np.stack([np.bincount(draw, minlength=prompts) for draw in draws])
        drawn.append(counts @ values / prompts)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail], axis=0)
    return [Estimate(*three) for three in zip(means, low.tolist(), high.tolist(), strict=True)]


def wins(scores: np.ndarray, against: np.ndarray) -> np.ndarray:
    """1 where a score is higher than that of the same prompt and seed, 0 where lower, 1/2 where equal."""
    return (scores > against) + 0.5 * (scores == against)
