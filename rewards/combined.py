"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from .protocol import Reward, check_inputs, check_prompts

Normalise = Literal["none", "standard deviation"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalise)


class CombinedReward:
    """The weighted sum of rewards.

    Rewards have scales of their own. With "standard deviation" each counts in standard deviations from its mean over
    the batch that is scored (the population's, as in `pick.best`), so that weights can be compared. A score then
    depends on the others in its batch; one that is the same for all pictures counts 0. Mean and deviation are constants
    to the gradient.
    """

    def __init__(self, rewards: Sequence[tuple[Reward, float]], normalise: Normalise) -> None:
        """Args:
            rewards: each with its weight, below 0 = the lower the better; those of weight 0 are not asked.
            normalise: what each is measured in.

        Raises:
            ValueError: no weight is other than 0.
        """
        self._rewards = [(reward, weight) for reward, weight in rewards if weight]
        if not self._rewards:
            raise ValueError("weight_1: all weights are 0, so nothing counts; set one to 1.")
        self._normalise = normalise
        self.name = " + ".join(f"{weight:g} {reward.name}" for reward, weight in self._rewards)
        self.unit = "weighted sum" if normalise == "none" else "weighted standard deviations"
        self.source = "; ".join(dict.fromkeys(reward.source for reward, _ in self._rewards))

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest possible sum."""
        if self._normalise != "none":
            return -math.inf, math.inf
        ends = [sorted(weight * end for end in reward.range) for reward, weight in self._rewards]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`.

        Raises:
            ValueError: also, there is one picture, which has no standard deviation.
        """
        self._check(images, prompts)
        return self.measured(self.raw(images, prompts)).float()

    @property
    def count(self) -> int:
        """How many rewards there are."""
        return len(self._rewards)

    def raw(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """(batch, rewards) scores of each reward in its own scale."""
        return torch.stack([reward.score(images, prompts) for reward, _ in self._rewards], dim=1)

    def measured(self, raw: torch.Tensor) -> torch.Tensor:
        """(batch,) weighted sums of scores that were measured as `normalise` says, over all that are given."""
        if self._normalise == "none" or not len(raw):
            return self.weighed(raw)
        fixed = raw.detach().double()
        deviation = fixed.std(dim=0, correction=0)
        return self.weighed((raw - fixed.mean(dim=0)) * torch.where(deviation > 0, 1 / deviation, 0.0))

    def weighed(self, raw: torch.Tensor) -> torch.Tensor:
        """(batch,) weighted sums of scores as they are."""
        return (raw * raw.new_tensor([weight for _, weight in self._rewards])).sum(dim=1)

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.gradient_score`; errors are also those of `score`."""
        for reward, _ in self._rewards:
            reward.gradient_score(images[:0], [])  # before the first is computed, whether the last can be
        self._check(images, prompts)
        with torch.inference_mode(False):
            raw = torch.stack([reward.gradient_score(images, prompts) for reward, _ in self._rewards], dim=1)
            return self.measured(raw).float()

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `PromptReader`."""
        for reward, _ in self._rewards:
            check_prompts(reward, prompts)

    def _check(self, images: torch.Tensor, prompts: Sequence[str]) -> None:
        check_inputs(images, prompts)
        if self._normalise != "none" and len(images) == 1:
            raise ValueError(
                "images: one picture has no standard deviation; score more at once, or set normalise to 'none'."
            )
