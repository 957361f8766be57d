"""Rewards that are a network's opinion: their scores, and the gradient of these with respect to the picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .host import Managed
from .preparation import Preparation
from .protocol import check_inputs

_GRADIENT_MEMORY = 512 * 2**20
"""Bytes that ViT-H keeps of one image at 224 pixels in float32 until its gradient is known, with room to spare."""


class NetworkReward(ABC):
    """`score` and `gradient_score` of what a network says of prepared pixels.

    Args:
        managed: the network, frozen.
        preparation: how it wants its pictures.
    """

    def __init__(self, managed: Managed, preparation: Preparation) -> None:
        self._managed = managed
        self._preparation = preparation

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See `WithNetworks.networks`."""
        return [self._managed.module]

    @abstractmethod
    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """(batch,) float32, of prepared pixels on the network's device; each row depends on its own input only."""

    @torch.inference_mode()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`."""
        check_inputs(images, prompts)
        found = [torch.zeros(0)]
        for part in self._managed.batches(len(images)):
            pixels = self._preparation.published(images[part]).to(self._managed.device)
            found.append(self._rate(pixels, prompts[part]).cpu())
        return torch.cat(found)

    @torch.inference_mode(False)
    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.gradient_score`. The values are those of `score` but for its rounding of pixels to 8 bits."""
        check_inputs(images, prompts)
        if images.is_inference():
            images = images.clone()

        def rate(picture: torch.Tensor, part: slice) -> torch.Tensor:
            pixels = self._preparation.differentiable(picture.to(self._managed.device))
            return self._rate(pixels, prompts[part]).to(picture.device)

        if images.requires_grad:
            return _ScoresWithGradient.apply(images, rate, self._managed.batches(len(images), _GRADIENT_MEMORY))
        with torch.no_grad():
            scores = [rate(images[part], part) for part in self._managed.batches(len(images))]
        return torch.cat([images.new_zeros(0, dtype=torch.float32), *scores])


class _ScoresWithGradient(torch.autograd.Function):
    """Scores, with their gradient taken at once, part by part, since each score depends on its own picture only.

    So nothing of the network is kept until `backward`: by then the host may have moved it to make room for another.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        rate: Callable[[torch.Tensor, slice], torch.Tensor],
        parts: Iterable[slice],
    ) -> torch.Tensor:
        scores, gradients = [images.new_zeros(0, dtype=torch.float32)], [images[:0]]
        for part in parts:
            picture = images[part].detach().requires_grad_()
            with torch.enable_grad():
                of_part = rate(picture, part)
                (gradient,) = torch.autograd.grad(of_part.sum(), picture)
            scores.append(of_part.detach())
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * upstream.view(-1, 1, 1, 1)).to(gradients.dtype), None, None
