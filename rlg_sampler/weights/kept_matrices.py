"""Low-rank matrices as runs use them, kept in main memory for as long as their tuned MODEL lives.

Stacking the parts of fused weights takes a while for a large model, and every run of a sweep would do it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from .low_rank import LowRank

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_kept: WeakKeyDictionary[ModelPatcher, tuple[Any, dict[str, LowRank]]] = WeakKeyDictionary()


def kept_matrices(base: ModelPatcher, tuned: ModelPatcher, dtype: torch.dtype) -> dict[str, LowRank]:
    """Weight → matrices of `dtype` that runs of this pair have made so far; the caller adds what it makes.

    The host gives a MODEL another `patches_uuid` whenever its patches change, so those of an earlier state are dropped.
    """
    state = (base.patches_uuid, tuned.patches_uuid, dtype)
    known = _kept.get(tuned)
    if known is None or known[0] != state:
        known = _kept[tuned] = (state, {})
    return known[1]
