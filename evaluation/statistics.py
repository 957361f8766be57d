"""Means with confidence intervals, win rates, and how different the pictures of one prompt are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95
_AT_A_TIME = 50


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of `values` (prompts,) or (prompts, seeds), with a bootstrap over prompts.

    Pictures of one prompt are not independent, so whole prompts are drawn.
    """
    of_prompts = values.reshape(len(values), -1).mean(axis=1)
    (found,) = estimates(of_prompts[:, None], seed)
    return found


def estimates(values: np.ndarray, seed: int = 0) -> list[Estimate]:
    """Of each column of `values`, (prompts, quantities), from the same draws of prompts."""
    rng, prompts = np.random.default_rng(seed), len(values)
    means = []
    for first in range(0, RESAMPLES, _AT_A_TIME):  # all of them at once would not fit for thousands of prompts
        draws = rng.integers(prompts, size=(min(_AT_A_TIME, RESAMPLES - first), prompts))
        counts = np.stack([np.bincount(draw, minlength=prompts) for draw in draws])
        means.append(counts @ values / prompts)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return [Estimate(*map(float, three)) for three in zip(values.mean(axis=0), low, high, strict=True)]


def wins(scores: np.ndarray, against: np.ndarray) -> np.ndarray:
    """1 where a score is higher than that of the same prompt and seed, 0 where lower, 1/2 where equal."""
    return (scores > against) + 0.5 * (scores == against)


def pixel_distance(pictures: np.ndarray) -> float:
    """Mean distance of two pictures of one prompt: the root mean square of their difference, 0 … 1.

    `pictures`: (seeds, height, width, 3) uint8, at least two.
    """
    flat = pictures.reshape(len(pictures), -1).astype(np.float32) / 255
    one, two = np.triu_indices(len(flat), k=1)
    return float(np.sqrt(((flat[one] - flat[two]) ** 2).mean(axis=1)).mean())
