"""What a worker gives back for a batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """One picture and what it is worth.

    Attributes:
        prompt: number of its prompt in the whole list.
        seed: index into the plan's seeds.
        cell: index into the plan's cells.
        png: the file.
        scores: one for each of the plan's rewards.
        diversity: of the pictures that differ from this one by their seed alone, and this; None with one seed.
    """

    prompt: int
    seed: int
    cell: int
    png: bytes
    scores: tuple[float, ...]
    diversity: float | None
