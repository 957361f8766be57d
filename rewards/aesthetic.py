"""LAION's aesthetic predictor."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from .clip import Clip
from .linear_head import LinearHead
from .pixels import cropped
from .protocol import check_inputs
from .published import CLIP_L
from .weights import fill, read


class Aesthetic:
    """How much people would like the picture, from about 1 to 10: a linear head on CLIP ViT-L/14 (the SAC+LOGOS+AVA1
    model of the improved aesthetic predictor)."""

    name = "aesthetic"
    unit = "points"
    range = (-math.inf, math.inf)
    source = "https://github.com/christophschuhmann/improved-aesthetic-predictor"

    def __init__(self, path: Path) -> None:
        self._clip = Clip(CLIP_L.find(self.name))
        self._head = LinearHead(self._clip.width)
        fill(self._head, read(path), path)
        self._head.float().eval().requires_grad_(False)

    @torch.inference_mode()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`; prompts are not looked at."""
        check_inputs(images, prompts)
        prepare = functools.partial(cropped, size=self._clip.side, crop="torchvision")
        return self._head.layers(self._clip.images(images, prepare)).squeeze(-1)
