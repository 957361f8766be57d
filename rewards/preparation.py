"""Pictures as the networks of rewards want them: as published, on 8 bits; and the same on floats, with a gradient."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from . import pixels
from .pixels import CLIP_MEAN, CLIP_STD, CropRounding, Prepare


@dataclass(frozen=True)
class Preparation:
    """One way to prepare pictures, in two versions.

    They agree to the rounding of 8 bits: exactly where the picture has 8-bit values and nothing has to be resized.

    Attributes:
        published: of the picture that the host's Save Image writes, as the published code prepares it.
        differentiable: of the floats themselves, on their device.
    """

    published: Prepare
    differentiable: Prepare


def crop(size: int, rounding: CropRounding) -> Preparation:
    """The square in the middle, of `size` pixels: see `pixels.cropped`."""
    return Preparation(
        functools.partial(pixels.cropped, size=size, crop=rounding),
        functools.partial(_cropped, size=size, rounding=rounding),
    )


def pad(size: int) -> Preparation:
    """The whole picture on a black square of `size` pixels: see `pixels.padded`."""
    return Preparation(
        functools.partial(pixels.padded, size=size), lambda images: pixels.padded_floats(_channels_first(images), size)
    )


def _cropped(images: torch.Tensor, size: int, rounding: CropRounding) -> torch.Tensor:
    """`pixels.cropped` without its rounding to 8 bits."""
    found = _channels_first(images)
    height, width = pixels.shorter_side(*found.shape[-2:], size)
    # As Pillow: first across, then down, with what overshoots cut off after each.
    for shape in ((found.shape[-2], width), (height, width)):
        found = pixels.resized(found, shape).clamp(0.0, 1.0)
    top, left = (pixels.offset(length - size, rounding) for length in (height, width))
    return pixels.normalised(found[..., top : top + size, left : left + size], CLIP_MEAN, CLIP_STD)


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    return images[..., :3].movedim(-1, 1).float().clamp(0.0, 1.0)
