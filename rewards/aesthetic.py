"""LAION's aesthetic predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from . import preparation
from .clip import Clip
from .linear_head import LinearHead
from .network_reward import NetworkReward
from .published import CLIP_L
from .weights import fill, read


class Aesthetic(NetworkReward):
    """How much people would like the picture, from about 1 to 10: a linear head on CLIP ViT-L/14 (the SAC+LOGOS+AVA1
    model of the improved aesthetic predictor)."""

    name = "aesthetic"
    unit = "points"
    range = (-math.inf, math.inf)
    source = "https://github.com/christophschuhmann/improved-aesthetic-predictor"

    def __init__(self, path: Path) -> None:
        self._clip = Clip(CLIP_L.find(self.name))
        super().__init__(self._clip.managed, preparation.crop(self._clip.side, "torchvision"))
        self._head = LinearHead(self._clip.width)
        fill(self._head, read(path), path)
        self._head.float().eval().requires_grad_(False)

    @property
    def networks(self) -> Sequence[nn.Module]:
        """See `WithNetworks.networks`."""
        return [*super().networks, self._head]

    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts are not looked at. The head is small: it stays on the CPU."""
        return self._head.layers(self._clip.of_pixels(pixels).cpu()).squeeze(-1)
