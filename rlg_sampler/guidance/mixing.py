"""The formula of Reinforcement Learning Guidance, on tensors.

RLG (arXiv 2508.21016) samples from the geometric average of a base model and its RL-tuned version,
p_base^(1-s) * p_tuned^s, whose score is the straight line through both scores. Scores of models that share
the noise process are affine in x0, so the same line holds for x0, velocity and epsilon. It is drawn in x0
because that space is right even when the two models predict different quantities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BASE = -1
"""Index of the base model among the models of a mix; the tuned ones count from 0."""


def base_coefficient(scales: Sequence[float]) -> float:
    """Weight of x0_base in the mix, 1 - Σ s_k: exactly 0 when the base model need not be evaluated."""
    return 1.0 - math.fsum(scales)


def models_of(scales: Sequence[float]) -> tuple[int, ...]:
    """The models that the mix at these scales depends on: at s = 0 the base alone, at s = 1 the tuned one alone."""
    base = [BASE] if base_coefficient(scales) != 0.0 else []
    return (*base, *(index for index, scale in enumerate(scales) if scale != 0.0))


def mix(x0_base: torch.Tensor | None, x0_tuned: Sequence[torch.Tensor], scales: Sequence[float]) -> torch.Tensor:
    """x0_base + Σ_k s_k · (x0_k − x0_base).

    Args:
        x0_base: prediction of the base model, shape (batch, channels, ...). May be None where
            `base_coefficient(scales)` is 0, since it then drops out.
        x0_tuned: one prediction per tuned model, each shaped like `x0_base`.
        scales: one scale s_k per tuned model.

    Returns:
        The guided x0, same shape and dtype.
    """
    if x0_base is None:
        return sum(scale * x0 for scale, x0 in zip(scales, x0_tuned, strict=True))
    mixed = x0_base
    for scale, x0 in zip(scales, x0_tuned, strict=True):
        mixed = mixed + scale * (x0 - x0_base)
    return mixed
