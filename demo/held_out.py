"""Random prompts of the part that is kept for evaluation, or of the part for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np


class Asked(Protocol):
    """What a picture is asked to show."""

    @property
    def text(self) -> str: ...

    @property
    def held_out(self) -> bool: ...


A = TypeVar("A", bound=Asked)


def of_part(draw: Callable[[np.random.Generator], A], rng: np.random.Generator, held_out: bool) -> A:
    """The next one that `draw` gives of that part."""
    while (asked := draw(rng)).held_out != held_out:
        pass
    return asked


def different(draw: Callable[[np.random.Generator], A], seed: int, count: int, held_out: bool) -> list[A]:
    """`count` of that part with different texts; there have to be so many."""
    rng = np.random.default_rng(seed)
    found: dict[str, A] = {}
    while len(found) < count:
        asked = of_part(draw, rng, held_out)
        found.setdefault(asked.text, asked)
    return list(found.values())
