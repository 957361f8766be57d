"""The best of several pictures, by one or several rewards."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def best(rewards: Sequence[tuple[Sequence[float], float]], count: int) -> list[int]:
    """Indices of the best, best first; equals stay in order.

    Rewards have scales of their own. Where there are several, each is measured in standard deviations from its mean
    over these pictures, so that their weights can be compared.

    Args:
        rewards: (scores, one per picture; weight) of each.
        count: how many to choose.

    Raises:
        ValueError: one is not finite, or there are fewer than count.
    """
    (available,) = {len(scores) for scores, _ in rewards}
    if any(not math.isfinite(score) for scores, _ in rewards for score in scores):
        raise ValueError("scores: one is not a finite number; look at the images that were scored.")
    if count > available:
        raise ValueError(f"count: {count} images are wanted and there are {available}; lower it.")
    if len(rewards) > 1:
        rewards = [(_standardised(scores), weight) for scores, weight in rewards]
    total = [sum(weight * scores[i] for scores, weight in rewards) for i in range(available)]
    return sorted(range(available), key=lambda i: -total[i])[:count]


def _standardised(scores: Sequence[float]) -> list[float]:
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    return [(score - mean) / deviation if deviation else 0.0 for score in scores]
