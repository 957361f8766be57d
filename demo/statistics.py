"""Means with confidence intervals, and how different the pictures of one prompt are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95


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
    draws = np.random.default_rng(seed).integers(len(of_prompts), size=(RESAMPLES, len(of_prompts)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(of_prompts[draws].mean(axis=1), [tail, 100 - tail])
    return Estimate(float(of_prompts.mean()), float(low), float(high))


def diversity(pictures: np.ndarray) -> float:
    """Mean distance of two pictures of one prompt: the root mean square of their difference, 0 … 1.

    `pictures`: (seeds, height, width, 3) uint8, at least two.
    """
    flat = pictures.reshape(len(pictures), -1).astype(np.float32) / 255
    one, two = np.triu_indices(len(flat), k=1)
    return float(np.sqrt(((flat[one] - flat[two]) ** 2).mean(axis=1)).mean())
