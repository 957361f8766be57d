"""What learners and their trainer tell each other about an iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Report = Callable[[float], None]
"""Called with the finished share of an iteration, 0 … 1."""


@dataclass(frozen=True)
class Learned:
    """What an iteration saw.

    Attributes:
        reward, spread: mean and standard deviation over its pictures.
        kl: distance to the base model, before β; 0 where it is not looked at.
        clipped: share of the density ratios outside the clip range.
        diffusion: loss on real images, before its weight; 0 without images.
        gradient: norm before it was limited, mean over the updates.
    """

    reward: float
    spread: float
    kl: float
    clipped: float
    diffusion: float
    gradient: float

    @classmethod
    def of(
        cls, rewards: torch.Tensor, gradient: float, kl: float = 0.0, clipped: float = 0.0, diffusion: float = 0.0
    ) -> Learned:
        """With the rewards of its pictures, of any shape."""
        return cls(float(rewards.mean()), float(rewards.std(correction=0)), kl, clipped, diffusion, gradient)
