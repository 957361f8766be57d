"""Whether main memory has room for what a run keeps in it: the system would end the host without a word."""

from __future__ import annotations

import comfy.model_management
import torch


def check_room(things: str, count: int, size: int, when: str = "", otherwise: str = "") -> None:
    """Refuse more than fits.

    Args:
        things: the beginning of the message: the user's input, and what is counted.
        count: of them.
        size: bytes of one.
        when, otherwise: what to add to the message: when they take so much, and what helps besides taking fewer.

    Raises:
        ValueError: they do not fit.
    """
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if count * size > free:
        raise ValueError(
            f"{things} take {count * size / 1e9:.1f} GB of main memory{when}, and {free / 1e9:.1f} GB are free; use at "
            f"most {int(free / size)}{otherwise}."
        )
