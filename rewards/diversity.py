"""How different the pictures of one prompt are.

Every measure gives one number per picture: its mean distance to the others. Their mean is the mean pairwise distance of
the prompt. The Vendi score is a number of the prompt as a whole, which each of its pictures gets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch

from .clip import Clip
from .dino import Dino
from .lpips_distance import LpipsDistance
from .pixels import cropped, pictures
from .published import CLIP_L, Published

Measure = Callable[[torch.Tensor], torch.Tensor]
"""IMAGE (pictures, height, width, 3) of one prompt, two or more → (pictures,) float32 on the CPU."""

_DINO = Published("the folder dinov2-base", "facebook/dinov2-base (Hugging Face)", "*dino*")
_ALEXNET = Published(
    "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "*alexnet-owt*"
)


def measure(name: str, file: str | None) -> Measure:
    """A measure, ready to use. Nothing is downloaded.

    Args:
        name: a key of MEASURES.
        file: of its weights, an entry of `host.weights()`; None takes the published one.

    Raises:
        ValueError: there is no such measure, the weights are not its, or a library is missing.
        FileNotFoundError: the weights are not there; the message says where they come from and belong.
    """
    if name not in MEASURES:
        raise ValueError(f"measure: there is no '{name}'; choose one of {', '.join(MEASURES)}.")
    return MEASURES[name](file)


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


def _pixels(_: str | None) -> Measure:
    """Root mean square of the difference of two pictures, 0 … 1."""

    def of(images: torch.Tensor) -> torch.Tensor:
        flat = torch.stack([_bytes(picture) for picture in pictures(images)]).float() / 255
        squares = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        return _mean_of_others((squares / flat.shape[1]).sqrt())

    return of


def _bytes(picture) -> torch.Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)


def _clip(file: str | None) -> Measure:
    clip = Clip(CLIP_L.find("the measure clip", file))
    return functools.partial(clip.images, prepare=functools.partial(cropped, size=clip.side, crop="transformers"))


def _dino(file: str | None) -> Measure:
    return Dino(_DINO.find("the measure dino", file)).images


def _lpips(file: str | None) -> Measure:
    lpips = LpipsDistance(_ALEXNET.find("the measure lpips", file))
    return lambda images: _mean_of_others(lpips.pairwise(images))


def _cosine_distance(features: Callable[[str | None], Measure]) -> Callable[[str | None], Measure]:
    """1 - cosine of two pictures' features, 0 … 2."""

    def make(file: str | None) -> Measure:
        vectors = features(file)

        def of(images: torch.Tensor) -> torch.Tensor:
            found = vectors(images)
            return _mean_of_others(1 - found @ found.T)

        return of

    return make


def _vendi(features: Callable[[str | None], Measure]) -> Callable[[str | None], Measure]:
    """The Vendi score (arXiv 2210.02410) under the cosine of features: how many different pictures there are, 1 … n."""

    def make(file: str | None) -> Measure:
        try:
            from vendi_score import vendi
        except ImportError as error:
            raise ValueError(
                f"measure: the Vendi score needs a Python package that is not installed ({error.name}); install it in "
                "ComfyUI's environment: pip install vendi-score."
            ) from error
        vectors = features(file)

        def of(images: torch.Tensor) -> torch.Tensor:
            found = vectors(images).double().numpy()
            return torch.full((len(images),), float(vendi.score_K(found @ found.T)))

        return of

    return make


def _mean_of_others(distances: torch.Tensor) -> torch.Tensor:
    """Of a (pictures, pictures) matrix, the mean of each row but its diagonal."""
    others = distances - torch.diag(distances.diagonal())
    return (others.sum(1) / (len(distances) - 1)).float()


MEASURES: Mapping[str, Callable[[str | None], Measure]] = {
    "pixels": _pixels,
    "clip": _cosine_distance(_clip),
    "dino": _cosine_distance(_dino),
    "lpips": _lpips,
    "vendi_clip": _vendi(_clip),
    "vendi_dino": _vendi(_dino),
}
