"""Inputs of nodes that take lists. The host gives such nodes lists for all inputs; scripts may pass plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def only(value: T | list[T] | tuple[T]) -> T:
    """The value of an input that is no list. Before a run the host says (None,) of what another node gives."""
    return value[0] if isinstance(value, list | tuple) else value


def as_list(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


def check_number(name: str, values: Sequence[object], images: int) -> None:
    """Raises ValueError: the input `name` has other than one value per image."""
    if len(values) != images:
        raise ValueError(
            f"{name}: there are {len(values)} of them for {images} images; connect what belongs to the same images."
        )


def per_image(prompts: str | list[str], batches: Sequence[torch.Tensor]) -> list[str]:
    """A prompt for each image of all batches: one for all of them, one per batch, or one per image.

    Raises:
        ValueError: there are other numbers of them.
    """
    return spread("prompt", as_list(prompts), [len(batch) for batch in batches])


def spread(name: str, values: Sequence[T], sizes: Sequence[int]) -> list[T]:
    """One value of the input `name` for each image of batches of `sizes`: from one for all, one per batch or per image.

    Raises:
        ValueError: there are other numbers of them.
    """
    if len(values) == 1:
        return list(values) * sum(sizes)
    if len(values) == len(sizes):
        return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
    if len(values) == sum(sizes):
        return list(values)
    raise ValueError(
        f"{name}: there are {len(values)} of them for {sum(sizes)} images in {len(sizes)} batches; give one for all, "
        "one per batch, or one per image."
    )
