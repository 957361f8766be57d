"""What a sweep has to evaluate: the predictions that its cells do not have in common.

Cells start from the same noise, so two of them have the same latents as long as their scales have been the same. Run in
the order of their scales they are the leaves of a prefix tree, met depth first, and what a cell shares with any earlier
one it shares with the one just before it. It is enough to remember that one's beginning.

Every cell is a run of its own, with the solver's own history and random stream. So it equals a separate run with any
sampler (stochastic, adaptive), takes no more memory, and evaluates only from where it parts from the cell before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..guidance.prediction import Prediction


def in_turn(scales: Sequence[tuple[float, ...]]) -> list[tuple[int, int]]:
    """The order in which the cells share most.

    Args:
        scales: for each cell its scale at each step, equally many for all.

    Returns:
        (number of a cell, how many steps the next one takes at the same scales).
    """
    order = sorted(range(len(scales)), key=lambda cell: scales[cell])
    shared = [_common(scales[a], scales[b]) for a, b in zip(order, order[1:], strict=False)]
    return list(zip(order, [*shared, 0], strict=False))


@dataclass(frozen=True)
class _Evaluation:
    x: torch.Tensor
    sigma: torch.Tensor
    predictions: dict[int, Prediction]


class SharedEvaluations:
    """Predictions that runs with the same beginning have in common. One object per sweep.

    Latents are compared, not assumed: whatever makes two runs differ (a sampler's step size, say) ends the sharing.
    """

    def __init__(self) -> None:
        self._earlier: list[_Evaluation] = []
        self._current: list[_Evaluation] = []
        self._position = self._keep = 0

    def begin(self, steps_shared: int) -> None:
        """The next run starts; the one after it takes so many steps at the same scales."""
        self._earlier, self._current = self._current, []
        self._position, self._keep = 0, steps_shared

    def at(self, step: int, x: torch.Tensor, sigma: torch.Tensor) -> dict[int, Prediction]:
        """Branch → prediction known for these latents; what the caller adds is known to the next run.

        Args:
            step: number of the step that this evaluation belongs to.
            x: latents, shape (batch, channels, ...).
            sigma: noise level per row, shape (batch,).
        """
        predictions: dict[int, Prediction] = {}
        if self._position < len(self._earlier):
            earlier = self._earlier[self._position]
            if torch.equal(earlier.x, x) and torch.equal(earlier.sigma, sigma):
                predictions = earlier.predictions
            else:
                self._earlier = []
        self._position += 1
        # The step where the scales part still starts from the same latents.
        if step <= self._keep:
            self._current.append(_Evaluation(x.clone(), sigma.clone(), predictions))
        return predictions


def _common(a: Sequence[float], b: Sequence[float]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
