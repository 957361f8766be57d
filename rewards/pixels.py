"""Images as files hold them, and as the published models want them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from PIL import Image
from scipy.spatial.distance import pdist, squareform

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Prepare = Callable[[torch.Tensor], torch.Tensor]
"""IMAGE (batch, height, width, 3) → (batch, 3, size, size) float32, normalised."""

CropRounding = Literal["transformers", "torchvision"]
"""Whose rounding places a square where an odd number of pixels is cut off; they differ by one pixel."""


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """8-bit values of an image of floats from 0 to 1, as the host's Save Image makes them: cut off, not rounded."""
    return (image.float() * 255.0).clamp(0, 255).to("cpu", torch.uint8).numpy()


def to_image(pixels: np.ndarray) -> torch.Tensor:
    """8-bit values as floats from 0 to 1, as the host's Load Image makes them; `to_bytes` gives them back."""
    return torch.from_numpy(pixels).float().div_(255.0)


def pictures(images: Iterable[torch.Tensor]) -> Iterator[Image.Image]:
    """Each image as the picture that the host's Save Image writes.

    A score of a saved and loaded picture is thus the score of the image itself.

    Args:
        images: each (height, width, 3 or more), float from 0 to 1; what follows the third channel is left out.
    """
    for image in images:
        yield Image.fromarray(np.ascontiguousarray(to_bytes(image[..., :3])))


def pixel_distances(pictures: np.ndarray) -> np.ndarray:
    """Mean distance of each picture to the others: the root mean square of their difference, 0 … 1.

    Args:
        pictures: (pictures, height, width, 3) uint8, two or more.

    Returns:
        (pictures,) float64.
    """
    flat = pictures.reshape(len(pictures), -1) / 255
    distances = squareform(pdist(flat)) / math.sqrt(flat.shape[1])
    return distances.sum(axis=1) / (len(flat) - 1)


def cropped(
    images: torch.Tensor,
    size: int,
    crop: CropRounding,
    shorter: int | None = None,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> torch.Tensor:
    """The square in the middle, as CLIP's own preparation cuts it: bicubic on 8 bits, in Pillow.

    Args:
        images: (batch, height, width, 3) float from 0 to 1.
        size: of the square, in pixels.
        crop: how the square is placed.
        shorter: length of the shorter side before the cut; None = size.
        mean, std: per channel, of the pixels the model was trained on.

    Returns:
        (batch, 3, size, size) float32, normalised, on the CPU.
    """
    prepared = []
    for picture in pictures(images):
        height, width = shorter_side(picture.height, picture.width, shorter or size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (offset(length - size, crop) for length in (width, height))
        prepared.append(_channels_first(picture.crop((left, top, left + size, top + size))))
    return normalised(torch.stack(prepared), mean, std)


def padded(images: torch.Tensor, size: int) -> torch.Tensor:
    """The whole image on a black square, as HPS v2 prepares it: bicubic on floats, in torch.

    Args:
        images: (batch, height, width, 3) float from 0 to 1.
        size: of the square, in pixels.

    Returns:
        (batch, 3, size, size) float32, normalised, on the CPU.
    """
    return padded_floats(torch.stack([_channels_first(picture) for picture in pictures(images)]), size)


def padded_floats(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """`padded` of floats from 0 to 1 as they are, (batch, 3, height, width), on their device."""
    scale = size / max(pixels.shape[-2:])
    height, width = (max(1, round(length * scale)) for length in pixels.shape[-2:])
    if scale != 1.0:
        pixels = resized(pixels, (height, width))
    left, top = (size - width) // 2, (size - height) // 2
    pixels = torch.nn.functional.pad(pixels, (left, size - width - left, top, size - height - top))
    return normalised(pixels, CLIP_MEAN, CLIP_STD)


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(batch, channels, height, width) at another size, bicubic, as Pillow does it but for its rounding."""
    # Torch has no backward pass of it on Apple's devices.
    own = pixels.device
    on = torch.device("cpu") if own.type == "mps" else own
    return torch.nn.functional.interpolate(pixels.to(on), size, mode="bicubic", antialias=True).to(own)


def shorter_side(height: int, width: int, length: int) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side becomes `length`."""
    longer = math.floor(length * max(height, width) / min(height, width))
    return (longer, length) if width <= height else (length, longer)


def offset(over: int, crop: CropRounding) -> int:
    """Where the square begins if `over` pixels more are there than it takes."""
    return over // 2 if crop == "transformers" else round(over / 2)


def _channels_first(picture: Image.Image) -> torch.Tensor:
    return to_image(np.array(picture)).movedim(-1, 0)


def normalised(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(batch, 3, height, width) on any device, by mean and standard deviation per channel."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
