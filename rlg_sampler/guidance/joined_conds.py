"""The negative and the positive cond of a branch as one cond with twice the rows, joined once per run.

A step of plain CFG has two conds, a step of two branches has four. The host prepares each of them anew at every step
(cuts it to the area, repeats it for the batch, puts it next to the others), though none of that changes in a run.
So the two of a branch are made one beforehand: the rows of the negative, then those of the positive, for latents that
are given twice. A step of two branches then has as many conds to prepare as plain CFG, and what they become is kept.

Conds with a treatment of their own stay apart (`JoinedConds.of` gives None), and so do kinds that the host cannot put
side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.conds import CONDRegular

Cond = dict[str, Any]

# What gives a cond a place, a time or company of its own: the host has to see each of these by itself.
_OWN_TREATMENT = (
    "area", "mask", "strength", "timestep_start", "timestep_end", "gligen", "hooks", "control", "default",
)  # fmt: skip


@dataclass(frozen=True)
class _Joined:
    """What is known of a branch.

    Attributes:
        sources: the parts of its two conds; other objects (after a hook, say) are other conds.
        rows: of the latents.
        cond: the two as one; None where they cannot be joined.
    """

    sources: tuple[Any, ...]
    rows: int
    cond: Cond | None


class JoinedConds:
    """The joined conds of a run, made at the first step that asks for them."""

    def __init__(self) -> None:
        self._of_branch: dict[int, _Joined] = {}

    def of(self, branch: int, positive: list[Cond] | None, negative: list[Cond] | None, rows: int) -> Cond | None:
        """One cond that stands for both, negative rows first, as in the host's own calls.

        Args:
            branch: whose conds they are.
            positive, negative: its prepared conds.
            rows: of the latents.

        Returns:
            The cond, for latents of 2 · `rows` rows; None where the host has to see the two apart.
        """
        if not (positive and negative and len(positive) == len(negative) == 1):
            return None
        pair = (negative[0], positive[0])
        if any(cond.get(key) is not None for cond in pair for key in _OWN_TREATMENT):
            return None
        sources = tuple(part for cond in pair for part in cond["model_conds"].values())
        known = self._of_branch.get(branch)
        if known is None or known.rows != rows or not _identical(known.sources, sources):
            known = self._of_branch[branch] = _Joined(sources, rows, _joined(*pair, rows))
        return known.cond


class _ConcatOnce(CONDRegular):
    """A part of a joined cond (its text, say) that is put next to those of other branches once per run.

    The host does that at every step. It is done again where there are other neighbours, or where a patch has written
    into the result.
    """

    def __init__(self, whole: CONDRegular) -> None:
        super().__init__(whole.cond)
        self._whole = whole
        self._others: list[CONDRegular] | None = None
        self._tensor: torch.Tensor | None = None
        self._version = 0

    def process_cond(self, batch_size: int, **_: Any) -> _ConcatOnce:
        return self  # it has the rows of the call already

    def can_concat(self, other: CONDRegular) -> bool:
        return self._whole.can_concat(other)

    def concat(self, others: list[CONDRegular]) -> torch.Tensor:
        known = self._others is not None and _identical(self._others, others)
        if not known or self._tensor._version != self._version:  # a patch wrote into it: the next step needs it whole
            with torch.inference_mode(False):  # where changes are not counted
                self._tensor = self._whole.concat(others)
            self._others, self._version = others, self._tensor._version
        return self._tensor

    def size(self) -> list[int]:
        return self._whole.size()


def _joined(first: Cond, second: Cond, rows: int) -> Cond | None:
    """Both as one cond, each repeated to `rows` rows; None where the host could not put them side by side."""
    if first["model_conds"].keys() != second["model_conds"].keys():
        return None
    model_conds = {}
    for name in first["model_conds"]:
        parts = [cond["model_conds"][name] for cond in (first, second)]
        if not all(isinstance(part, CONDRegular) for part in parts):
            return None
        one, other = (part.process_cond(batch_size=rows, area=None) for part in parts)
        if not one.can_concat(other):
            return None
        both = one.concat([other])
        tensors = [t for t in (both if isinstance(both, list) else [both]) if isinstance(t, torch.Tensor)]
        if any(tensor.shape[0] != 2 * rows for tensor in tensors):
            return None
        whole = one._copy_with(both)
        model_conds[name] = _ConcatOnce(whole) if isinstance(both, torch.Tensor) else whole
    return {"model_conds": model_conds, "uuid": first["uuid"]}


def _identical(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
