"""What every reward is to the nodes and to the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn


class Reward(Protocol):
    """A score of an image for its prompt, higher is better.

    Attributes:
        name: unique lower-case identifier, such as "pickscore".
        unit: what the numbers count, for axes and reports.
        range: lowest and highest possible score, ±inf where open.
        source: paper or repository that the scores are those of.
    """

    name: str
    unit: str
    range: tuple[float, float]
    source: str

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw scores in the model's own scale, each independent of the batch it came in.

        Args:
            images: (batch, height, width, 3) float from 0 to 1, ComfyUI's IMAGE.
            prompts: one per image.

        Returns:
            (batch,) float32 on the CPU.

        Raises:
            ValueError: the numbers of images and prompts differ, or images is not an IMAGE.
        """
        ...

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """`score` as a function of the floats themselves, which autograd can differentiate.

        `score` rounds pixels to 8 bits as a saved picture has them; a gradient cannot pass that. The two are equal up
        to this rounding. It can be called in inference mode too, and leaves no gradient on a model's weights.

        Args:
            images: as for `score`, on any device; they may require a gradient.
            prompts: one per image.

        Returns:
            (batch,) float32 on the images' device, differentiable once with respect to the images.

        Raises:
            ValueError: as `score`; or the reward has no gradient, which an empty batch is enough to ask.
        """
        ...


@runtime_checkable
class PromptReader(Protocol):
    """A reward that reads what its prompts ask for, and so takes some prompts only."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises ValueError: it cannot read one, which the message shows."""
        ...


@runtime_checkable
class WithNetworks(Protocol):
    """A reward that is what networks say, and so another one with other weights."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """All of them, always in the same order."""
        ...


class WithoutGradient:
    """For rewards that are no smooth function of the pixels."""

    name: str

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raises ValueError: there is no gradient."""
        raise ValueError(
            f"reward: {self.name} has no gradient; train on it with Flow-GRPO, DiffusionNFT, DDPO or B²-DiffuRL, or "
            "choose a reward that has one, such as pickscore."
        )


def networks_of(reward: Reward) -> Sequence[nn.Module]:
    """What `WithNetworks.networks` gives; nothing for a reward that has none."""
    return reward.networks if isinstance(reward, WithNetworks) else ()


def check_prompts(reward: Reward, prompts: Sequence[str]) -> None:
    """Raises ValueError: the reward cannot read one of the prompts. To be asked before pictures are made of them."""
    if isinstance(reward, PromptReader):
        reward.check_prompts(prompts)


def check_inputs(images: torch.Tensor, prompts: Sequence[str]) -> None:
    """Raises ValueError for what `score` cannot take."""
    if images.ndim != 4 or images.shape[-1] < 3:
        raise ValueError(f"images: the shape is {tuple(images.shape)}; an IMAGE is (batch, height, width, 3).")
    if len(images) != len(prompts):
        raise ValueError(f"prompts: there are {len(prompts)} of them for {len(images)} images; give one per image.")
