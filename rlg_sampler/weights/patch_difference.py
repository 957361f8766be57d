"""What separates two MODELs that share one set of weights: the difference of their weight patches.

Two clones of a model carry lists of patches per weight. Patches both have stay merged by the host; what only the
tuned one has is added, what only the base has is taken away. Sums of low-rank terms stay low-rank; everything
else (LoKr, DoRA, full differences, rescaled weights) becomes the exact difference of the two patched weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter

from .low_rank import LowRank

# The host's patch: (strength, LoRA or ("diff", …), strength_model, (dim, start, length) or None, function or None)
Patch = tuple[float, Any, float, tuple[int, int, int] | None, Any]
WeightPatches = Mapping[str, Sequence[Patch]]


@dataclass(frozen=True)
class WeightChange:
    """How the tuned model's patches for one weight differ from the base's.

    Attributes:
        base, tuned: all patches of each, in the order the host applies them.
        taken_away, added: those of the base alone and of the tuned model alone that change something.
        terms: (sign, patch) whose sum is the change, where every patch is additive; None where one is not, and
            the change depends on the weight itself.
    """

    base: tuple[Patch, ...]
    tuned: tuple[Patch, ...]
    taken_away: tuple[Patch, ...]
    added: tuple[Patch, ...]
    terms: tuple[tuple[float, Patch], ...] | None

    def low_rank_numbers(self, shape: torch.Size) -> int:
        """How many numbers `low_rank_change` holds for a weight of this shape."""
        terms = [(_rows(part, shape), adapter.weights[1].shape[0]) for _, (_, adapter, _, part, _) in self.terms or ()]
        return sum(rank * (stop - start + shape[1:].numel()) for (start, stop), rank in terms)


def patch_difference(base: WeightPatches, tuned: WeightPatches) -> dict[str, WeightChange]:
    """The weights whose patches differ, with what separates them; empty when nothing does."""
    changes = {}
    for key in sorted(base.keys() | tuned.keys()):
        of_base, of_tuned = tuple(base.get(key, ())), tuple(tuned.get(key, ()))
        removed, added = _without(of_base, of_tuned), _without(of_tuned, of_base)
        taken_away, adds = _that_change(removed), _that_change(added)
        if not (taken_away or adds):
            continue
        # A patch that rescales or replaces the weight acts on those before it, so only what follows it is a plain sum.
        only_follows = not removed and all(map(_same_patch, of_base, of_tuned))
        everything = added if only_follows else of_base + of_tuned
        terms = None
        if all(_is_low_rank(patch) for patch in everything):
            terms = tuple((-1.0, p) for p in removed) + tuple((1.0, p) for p in added)
        changes[key] = WeightChange(of_base, of_tuned, taken_away, adds, terms)
    return changes


def low_rank_change(change: WeightChange, shape: torch.Size) -> LowRank:
    """The terms of a change as matrices.

    Args:
        change: one whose `terms` are not None.
        shape: of the weight, (out_features, in_features) or a convolution's (out, in, ...).
    """
    terms = []
    for sign, (strength, adapter, _, part, _) in change.terms or ():
        up, down, alpha, mid, *_ = adapter.weights
        scale = sign * strength * (1.0 if alpha is None else alpha / down.shape[0])
        # Scale in float32: half-precision factors are then rounded once, not twice.
        down = down.float() if mid is None else _with_mid(down.float(), mid.float())
        down = scale * down.flatten(1)
        if part is not None and part[0] == 1:
            _, start, length = part
            down = torch.nn.functional.pad(down, (start, shape[1] - start - length))
        terms.append((_rows(part, shape), up.flatten(1), down))
    return LowRank.of(terms)


def dense_change(change: WeightChange, weight: torch.Tensor, key: str) -> torch.Tensor:
    """W_tuned − W_base in float32, both as the host computes them.

    Args:
        change: what separates the two.
        weight: the unpatched weight.
        key: its name, which some patch kinds use.
    """
    start = weight.to(torch.float32)
    tuned = comfy.lora.calculate_weight(list(change.tuned), start.clone(), key)
    base = comfy.lora.calculate_weight(list(change.base), start.clone(), key)
    return tuned - base


def _rows(part: tuple[int, int, int] | None, shape: torch.Size) -> tuple[int, int]:
    """The rows of a weight that a patch for this part of it changes."""
    if part is None or part[0] != 0:
        return 0, shape[0]
    _, start, length = part
    return start, start + length


def _with_mid(down: torch.Tensor, mid: torch.Tensor) -> torch.Tensor:
    """The kernels (rank, in, ...) of a convolution by `down` (rank, in, 1, ...) and one by `mid` (rank, rank, ...)."""
    return torch.einsum("rs...,si->ri...", mid, down.flatten(1))


def _without(patches: tuple[Patch, ...], others: tuple[Patch, ...]) -> tuple[Patch, ...]:
    remaining = list(others)
    left = []
    for patch in patches:
        twin = next((i for i, other in enumerate(remaining) if _same_patch(patch, other)), None)
        if twin is None:
            left.append(patch)
        else:
            del remaining[twin]
    return tuple(left)


def _same_patch(a: Patch, b: Patch) -> bool:
    return a is b or ((a[0], a[2], a[3]) == (b[0], b[2], b[3]) and a[4] is b[4] and _equal(a[1], b[1]))


def _equal(a: Any, b: Any) -> bool:
    """Whether two patches are of the same numbers: each loader reads a file anew."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.itemsize == 1:  # older versions of PyTorch do not compare float8
            a, b = a.view(torch.uint8), b.view(torch.uint8)
        return torch.equal(a, b.to(a.device))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, WeightAdapterBase):
        return _equal(a.weights, b.weights)
    return isinstance(a, bool | int | float | str) and a == b


def _that_change(patches: tuple[Patch, ...]) -> tuple[Patch, ...]:
    return tuple(patch for patch in patches if not _is_zero(patch))


def _is_zero(patch: Patch) -> bool:
    strength, adapter, strength_model, _, _ = patch
    if strength_model != 1.0:
        return False
    if strength == 0.0:
        return True
    if _is_low_rank(patch):
        up, down, alpha, *_ = adapter.weights
        # A LoRA as initialised, before any training, has an all-zero `up`.
        return alpha == 0.0 or not (_any(up) and _any(down))
    return isinstance(adapter, tuple) and adapter[:1] == ("diff",) and not _any(adapter[1][0])


def _any(numbers: torch.Tensor) -> bool:
    """Whether one is not zero."""
    # The first few nearly always tell; all of a large LoRA take a second to read from its file, before each run.
    return bool(torch.atleast_1d(numbers)[:1].any()) or bool(numbers.any())


def _is_low_rank(patch: Patch) -> bool:
    _, adapter, strength_model, _, function = patch
    if not isinstance(adapter, LoRAAdapter) or strength_model != 1.0 or function is not None:
        return False
    _, _, _, _, dora_scale, reshape = adapter.weights
    return dora_scale is None and reshape is None
