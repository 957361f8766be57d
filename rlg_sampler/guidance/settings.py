"""What a user chooses about guidance besides the two models."""

from __future__ import annotations

from dataclasses import dataclass

from ..schedules.schedule import Schedule
from .approximation import EXACT, Approximation

BATCHING = AUTO, ONE_BATCH, TWO_PASSES = "auto", "one batch", "two passes"
"""How models that share their weights are evaluated. "auto" puts them into one batch where that is faster; in each case
the host splits a batch that does not fit into memory."""


@dataclass(frozen=True)
class GuidanceSettings:
    """How a pair is guided.

    In a chain each tuned model has its own schedule and CFG. Batching and approximation are those of the whole run, and
    there the settings of the last tuned model count.

    Attributes:
        schedule: the scale s over the run.
        tuned_cfg: CFG of the tuned model; None takes the sampler's.
        batching: one of `BATCHING`.
        approximation: what may be left out.
    """

    schedule: Schedule
    tuned_cfg: float | None = None
    batching: str = AUTO
    approximation: Approximation = EXACT
