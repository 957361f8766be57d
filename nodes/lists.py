"""Inputs of nodes that take lists. The host gives such nodes lists for all inputs; scripts may pass plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def only(value: T | list[T]) -> T:
    """The value of an input that is no list."""
    return value[0] if isinstance(value, list) else value


def as_list(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]


def per_image(prompts: str | list[str], batches: Sequence[torch.Tensor]) -> list[str]:
    """A prompt for each image of all batches: one for all of them, one per batch, or one per image.

    Raises:
        ValueError: there are other numbers of them.
    """
    prompts, sizes = as_list(prompts), [len(batch) for batch in batches]
    if len(prompts) == 1:
        return prompts * sum(sizes)
    if len(prompts) == len(batches):
        return [prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    if len(prompts) == sum(sizes):
        return prompts
    raise ValueError(
        f"prompt: there are {len(prompts)} of them for {sum(sizes)} images in {len(batches)} batches; give one for "
        "all, one per batch, or one per image."
    )
