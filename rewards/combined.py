"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from .protocol import Reward, check_inputs, check_prompts, networks_of

Normalise = Literal["none", "standard deviation"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalise)

Unreadable = Literal["refuse", "leave out"]
UNREADABLE: tuple[str, ...] = get_args(Unreadable)

_Score = Callable[[Reward, torch.Tensor, Sequence[str]], torch.Tensor]


class CombinedReward:
    """The weighted sum of rewards.

    Rewards have scales of their own. With "standard deviation" each counts in standard deviations from its mean over
    the batch that is scored (the population's, as in `pick.best`), so that weights can be compared. A score then
    depends on the others in its batch; one that is the same for all pictures counts 0. Mean and deviation are constants
    to the gradient.

    One list may hold prompts for several rewards, as in joint RL (arXiv 2401.12244): a reward that cannot read a prompt
    (see `PromptReader`) is then left out for it, and measured over the pictures of the others.
    """

    def __init__(
        self, rewards: Sequence[tuple[Reward, float]], normalise: Normalise, unreadable: Unreadable = "refuse"
    ) -> None:
        """Args:
            rewards: each with its weight, below 0 = the lower the better; those of weight 0 are not asked.
            normalise: what each is measured in.
            unreadable: prompts that one of them cannot read are an error, or it is left out for them.

        Raises:
            ValueError: no weight is other than 0.
        """
        self._rewards = [(reward, weight) for reward, weight in rewards if weight]
        if not self._rewards:
            raise ValueError("weight_1: all weights are 0, so nothing counts; set one to 1.")
        self._normalise, self._leaves_out = normalise, unreadable == "leave out"
        self.name = " + ".join(f"{weight:g} {reward.name}" for reward, weight in self._rewards)
        self.unit = "weighted sum" if normalise == "none" else "weighted standard deviations"
        alone = self._rewards[0][0] if [weight for _, weight in self._rewards] == [1.0] else None
        self.unit_of_weighed = "weighted sum" if alone is None else alone.unit
        """Of the sums that `weighed` gives."""
        self.source = "; ".join(dict.fromkeys(reward.source for reward, _ in self._rewards))

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest possible sum."""
        if self._normalise != "none":
            return -math.inf, math.inf
        nothing = [0.0] if self._leaves_out else []
        ends = [[*nothing, *(weight * end for end in reward.range)] for reward, weight in self._rewards]
        return sum(map(min, ends)), sum(map(max, ends))

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See `WithNetworks.networks`."""
        return [network for reward, _ in self._rewards for network in networks_of(reward)]

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
        """(batch, rewards) scores of each reward in its own scale; NaN where one is left out."""
        return self._asked(images, prompts, lambda reward, *asked: reward.score(*asked))

    def measured(self, raw: torch.Tensor) -> torch.Tensor:
        """(batch,) weighted sums of scores that were measured as `normalise` says, over all that are given."""
        if self._normalise == "none" or not len(raw):
            return self.weighed(raw)
        fixed = raw.detach().double()
        mean = fixed.nanmean(dim=0)
        deviation = (fixed - mean).square().nanmean(dim=0).sqrt()
        return self._sum(raw, (raw - mean) * torch.where(deviation > 0, 1 / deviation, 0.0))

    def weighed(self, raw: torch.Tensor) -> torch.Tensor:
        """(batch,) weighted sums of scores as they are."""
        return self._sum(raw, raw)

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.gradient_score`; errors are also those of `score`."""
        for reward, _ in self._rewards:
            reward.gradient_score(images[:0], [])  # before the first is computed, whether the last can be
        self._check(images, prompts)
        with torch.inference_mode(False):
            raw = self._asked(images, prompts, lambda reward, *asked: reward.gradient_score(*asked))
            return self.measured(raw).float()

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `PromptReader`. Where rewards are left out, each prompt needs one that reads it."""
        if not self._leaves_out:
            for reward, _ in self._rewards:
                check_prompts(reward, prompts)
            return
        for prompt in prompts:
            if not any(_reads(reward, prompt) for reward, _ in self._rewards):
                check_prompts(self._rewards[0][0], [prompt])  # whose sentence says what it reads

    def _asked(self, images: torch.Tensor, prompts: Sequence[str], score: _Score) -> torch.Tensor:
        if not self._leaves_out:
            return torch.stack([score(reward, images, prompts) for reward, _ in self._rewards], dim=1)
        columns = []
        for reward, _ in self._rewards:
            column = images.new_full((len(prompts),), math.nan, dtype=torch.float32)
            if rows := [row for row, prompt in enumerate(prompts) if _reads(reward, prompt)]:
                scores = score(reward, images[rows], [prompts[row] for row in rows])
                # NaN means left out here: what a reward gives as NaN has to stay an error.
                scores = torch.where(scores.isnan(), math.inf, scores)
                column = column.to(scores.device).index_put((torch.tensor(rows, device=scores.device),), scores)
            columns.append(column)
        return torch.stack(columns, dim=1)

    def _sum(self, raw: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        counted = torch.where(raw.isnan(), 0.0, measured) if self._leaves_out else measured
        return (counted * counted.new_tensor([weight for _, weight in self._rewards])).sum(dim=1)

    def _check(self, images: torch.Tensor, prompts: Sequence[str]) -> None:
        check_inputs(images, prompts)
        if self._leaves_out:
            self.check_prompts(prompts)
        if self._normalise != "none" and len(images) == 1:
            raise ValueError(
                "images: one picture has no standard deviation; score more at once, or set normalise to 'none'."
            )


def _reads(reward: Reward, prompt: str) -> bool:
    try:
        check_prompts(reward, [prompt])
    except ValueError:
        return False
    return True
