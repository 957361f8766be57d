"""Random numbers with names: what is drawn for a picture depends on what it is for, not on who draws it, or when.

So a run that is resumed draws what an undisturbed run does, and several workers draw what one does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def stream(seed: int, *names: int | str) -> torch.Generator:
    """A generator on the CPU of its own for these names, independent of those of other names.

    Args:
        seed: of the run.
        names: what is drawn for, such as an iteration, a group, a row.
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def noise(generators: Sequence[torch.Generator], shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Normal float32 noise, each row from a generator of its own.

    Args:
        generators: one per row.
        shape: of one row.

    Returns:
        (rows, *shape) on `device`.
    """
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
