"""Rewards that need nothing but pixels: how small or how large a picture is as a JPEG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import torch
from PIL import Image

from .pixels import pictures
from .protocol import WithoutGradient, check_inputs

_QUALITY = 95


class JpegIncompressibility(WithoutGradient):
    """Size of the picture as a JPEG of quality 95 (DDPO, arXiv 2305.13301, section 5.1)."""

    name = "jpeg_incompressibility"
    unit = "kB"
    range = (0.0, math.inf)
    source = "DDPO, arXiv 2305.13301"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`; prompts are not looked at."""
        check_inputs(images, prompts)
        return torch.tensor([kilobytes(picture) for picture in pictures(images)], dtype=torch.float32)


class JpegCompressibility(WithoutGradient):
    """Minus the size of the picture as a JPEG of quality 95 (DDPO, arXiv 2305.13301, section 5.1)."""

    name = "jpeg_compressibility"
    unit = "-kB"
    range = (-math.inf, 0.0)
    source = "DDPO, arXiv 2305.13301"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`; prompts are not looked at."""
        return -JpegIncompressibility().score(images, prompts)


def kilobytes(picture: Image.Image) -> float:
    """Size of an RGB picture as a JPEG of quality 95."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return len(file.getvalue()) / 1000
