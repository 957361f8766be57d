"""How different the pictures of one prompt are.

Every measure gives one number per picture: its mean distance to the others. Their mean is the mean pairwise distance of
the prompt. The Vendi score is a number of the prompt as a whole, which each of its pictures gets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .clip import Clip
from .dino import Dino
from .lpips_distance import LpipsDistance
from .pixels import pictures, pixel_distances
from .published import CLIP_L, Kind, Kinds, Published

Measure = Callable[[torch.Tensor], torch.Tensor]
"""IMAGE (pictures, height, width, 3) of one prompt, two or more → (pictures,) float32 on the CPU."""


_DINO = Published("the folder dinov2-base", "facebook/dinov2-base (Hugging Face)", "*dino*")
_ALEXNET = Published(
    "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "*alexnet-owt*"
)


def diversity(of: Measure, images: Sequence[torch.Tensor], groups: Sequence[object]) -> list[float]:
    """One number per picture; the mean over a group is the group's diversity.

    Args:
        of: how to measure it.
        images: each of shape (height, width, 3), float from 0 to 1.
        groups: what each was made of (prompt and setting); pictures of equal ones are compared.

    Raises:
        ValueError: a picture has none to be compared with, or one of another size.
    """
    found = [0.0] * len(images)
    for group in dict.fromkeys(groups):
        rows = [row for row, other in enumerate(groups) if other == group]
        if len(rows) < 2:
            raise ValueError(
                f"images: there is only 1 of {group}, and diversity takes two or more; raise the batch size of the "
                "latent."
            )
        if len({images[row].shape for row in rows}) > 1:
            raise ValueError(f"images: those of {group} have different sizes; make them equal before (Upscale Image).")
        for row, value in zip(rows, of(torch.stack([images[row] for row in rows])).tolist(), strict=True):
            found[row] = value
    return found


def _pixels() -> Measure:
    return lambda images: torch.from_numpy(pixel_distances(np.stack(list(map(np.asarray, pictures(images)))))).float()


def _clip(path: Path) -> Measure:
    return Clip(path).images


def _dino(path: Path) -> Measure:
    return Dino(path).images


def _lpips(path: Path) -> Measure:
    lpips = LpipsDistance(path)
    return lambda images: _mean_of_others(lpips.pairwise(images))


def _cosine_distance(features: Callable[[Path], Measure], path: Path) -> Measure:
    """1 - cosine of two pictures' features, 0 … 2."""
    vectors = features(path)

    def of(images: torch.Tensor) -> torch.Tensor:
        found = vectors(images)
        return _mean_of_others(1 - found @ found.T)

    return of


def _vendi(features: Callable[[Path], Measure], path: Path) -> Measure:
    """The Vendi score (arXiv 2210.02410) under the cosine of features: how many different pictures there are, 1 … n."""
    try:
        from vendi_score import vendi
    except ImportError as error:
        raise ValueError(
            f"measure: the Vendi score needs a Python package that is not installed ({error.name}); install it in "
            "ComfyUI's environment: pip install vendi-score."
        ) from error
    vectors = features(path)

    def of(images: torch.Tensor) -> torch.Tensor:
        found = vectors(images).double().numpy()
        return torch.full((len(images),), float(vendi.score_K(found @ found.T)))

    return of


def _mean_of_others(distances: torch.Tensor) -> torch.Tensor:
    """Of a (pictures, pictures) matrix, the mean of each row but its diagonal."""
    others = distances - torch.diag(distances.diagonal())
    return (others.sum(1) / (len(distances) - 1)).float()


MEASURES: Kinds[Measure] = Kinds(
    "measure",
    "the measure {}",
    {
        "pixels": Kind(_pixels),
        "clip": Kind(functools.partial(_cosine_distance, _clip), CLIP_L),
        "dino": Kind(functools.partial(_cosine_distance, _dino), _DINO),
        "lpips": Kind(_lpips, _ALEXNET),
        "vendi_clip": Kind(functools.partial(_vendi, _clip), CLIP_L),
        "vendi_dino": Kind(functools.partial(_vendi, _dino), _DINO),
    },
)

measure, files_of = MEASURES.load, MEASURES.files_of
