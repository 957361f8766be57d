"""Fewer evaluations for a picture that is a little different. A run is exact unless it is asked for this.

An exact step evaluates every model of the mix x0 = Σ_m c_m · x0_m, where c_k = s_k for a tuned model and c_base is
1 − Σ_k s_k, each with and without the prompt. Two things may be left out:

- Direction reuse: how far the models are from each other changes slowly over the steps. It is computed at one step of n
  and kept in between, where one model alone is evaluated.
- Shared uncond: without the prompt the models are much alike. One of them is evaluated, and CFG of all starts from its
  x0.

That one model is the lead, the one of the largest |c_m|: its own x0 is exact, so errors are in the others alone and
count with their weights. For one tuned model at s > 1/2 that is |1 − s|; if the base always led, it would be s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..schedules.schedule import Schedule, constant, in_range
from .mixing import BASE, base_coefficient
from .prediction import Prediction


@dataclass(frozen=True)
class Approximation:
    """What a run may leave out.

    Attributes:
        direction_every: the direction is computed at one of so many steps; 1 at each.
        shared_uncond: one model's uncond serves all.
        start_percent, end_percent: progress p where that holds, start ≤ p < end (an end of 1 includes the last step).

    Raises:
        ValueError: there is no such range, or no such number of steps.
    """

    direction_every: int = 1
    shared_uncond: bool = False
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if self.direction_every < 1:
            raise ValueError(f"direction_every: {self.direction_every} cannot be used; give 1 (each step) or more.")
        _ = self._range

    @property
    def _range(self) -> Schedule:
        return in_range(1.0, self.start_percent, self.end_percent, outside=0.0)

    def per_step(self, steps: int) -> list[bool]:
        """Whether it holds at each of `steps` steps."""
        return [inside == 1.0 for inside in self._range.per_step(steps)]

    def __str__(self) -> str:
        parts = [f"direction computed at one of {self.direction_every} steps"] if self.direction_every > 1 else []
        parts += ["uncond of one model for all"] if self.shared_uncond else []
        everywhere = self._range == constant(1.0)
        where = "" if everywhere else f", from {self.start_percent:g} to {self.end_percent:g} of the steps"
        return (", ".join(parts) or "nothing") + where


EXACT = Approximation()
"""Nothing is left out."""


def lead(scales: Sequence[float], among: Sequence[int]) -> int:
    """The model of largest weight in the mix.

    Args:
        scales: s_k of each tuned model.
        among: the models to choose from, at least one.
    """
    return max(among, key=lambda model: abs(base_coefficient(scales) if model == BASE else scales[model]))


class Directions:
    """How far the models are from each other, as last computed in a run.

    Args:
        every: as `Approximation.direction_every`.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._known: Mapping[int, Prediction] = {}
        self._step = 0

    def known_at(self, step: int, models: Sequence[int], shape: torch.Size) -> bool:
        """Whether one of `models` is enough at that step: how far they are apart is known, and not too old.

        Args:
            shape: of the latents, which some samplers make larger on their way.
        """
        known = self._known.keys() >= set(models) and 0 <= step - self._step < self._every
        return known and self._known[models[0]].x0.shape == shape

    def learn(self, step: int, predictions: Mapping[int, Prediction]) -> None:
        """Keep what was predicted at a step."""
        self._known, self._step = dict(predictions), step

    def complete(self, models: Sequence[int], leading: int, prediction: Prediction) -> dict[int, Prediction]:
        """What `models` predict, all of them as far from `leading` as they were when last computed."""
        return {
            model: prediction if model == leading else self._known[model].moved(self._known[leading], prediction)
            for model in models
        }
