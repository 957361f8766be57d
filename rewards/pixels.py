"""Images as files hold them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image


def pictures(images: torch.Tensor) -> Iterator[Image.Image]:
    """Each image as the picture that the host's Save Image writes: 8 bits, cut off, not rounded.

    A score of a saved and loaded picture is thus the score of the image itself.

    Args:
        images: (batch, height, width, 3 or more) float from 0 to 1; what follows the third channel is left out.
    """
    for image in images:
        pixels = (image[..., :3].float() * 255.0).clamp(0, 255).to("cpu", torch.uint8).contiguous()
        yield Image.fromarray(pixels.numpy())
