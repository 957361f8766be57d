"""Drawn pictures as the host's IMAGE."""

from __future__ import annotations

import torch
from PIL import Image


def to_tensor(image: Image.Image) -> torch.Tensor:
    """IMAGE of shape (1, height, width, 3), float32 from 0 to 1, of an RGB picture."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(1, image.height, image.width, 3).float() / 255.0
