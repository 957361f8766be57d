"""The tuned model as corrections on the base model's own modules, for the batch rows that belong to it.

Each adapted module keeps its weight (any dtype, quantised or offloaded) and gets a forward that adds
`(x[rows] @ downᵀ) @ upᵀ` to its output. A replaced forward rather than a forward hook: torch.compile guards against
the first and, by default, not against the second, so a model compiled before would run on without its deltas and
without a sign. It exists only inside `attached`, so nothing is left behind after a run, an error or Cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ops import CastWeightBiasOp

from .low_rank import LowRank, is_conv
from .missed_modules import may_be_fused, refuse_fused
from .patch_difference import WeightChange, dense_change, low_rank_change
from .unpatched_weight import unpatched_weight

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_kept: WeakKeyDictionary[ModelPatcher, tuple[Any, dict[str, LowRank]]] = WeakKeyDictionary()


class RowsNotSeparable(RuntimeError):
    """A module's input does not keep the batch in its first dimension, so rows cannot be told apart there."""


@dataclass(frozen=True)
class Rows:
    """Batch rows `start:stop` of a model call with `total` rows."""

    start: int
    stop: int
    total: int

    def of(self, x: torch.Tensor) -> slice:
        if self.stop - self.start == self.total:
            return slice(None)
        if x.shape[0] != self.total:
            raise RowsNotSeparable(f"{x.shape[0]} rows at a module where the model was called with {self.total}")
        return slice(self.start, self.stop)


@dataclass
class ModuleDelta:
    """What the tuned model changes in one module: any of a low-rank part, a dense part and a bias.

    Attributes:
        was_added: whether a call of the model has come to it.
    """

    low_rank: LowRank | None = None
    dense: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    was_added: bool = False

    def add(self, module: torch.nn.Module, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add the change to `out` = module(x), in place."""
        self.was_added = True
        if self.low_rank is not None:
            self.low_rank.add(module, x, out)
        if self.dense is not None:
            weight = self.dense.to(x.dtype)
            out += module._conv_forward(x, weight, None) if is_conv(module) else F.linear(x, weight)
        if self.bias is not None:
            channels = (-1, *[1] * (out.ndim - 2)) if is_conv(module) else (-1,)
            out += self.bias.to(out.dtype).view(channels)


class Deltas:
    """All corrections of one tuned model.

    Args:
        modules: module name in the host's model → its change.

    Attributes:
        rows: the batch rows that are the tuned model's in the current model call, if any.
    """

    def __init__(self, modules: Mapping[str, ModuleDelta]) -> None:
        self.modules = dict(modules)
        self.rows: Rows | None = None
        self._fused: set[str] = set()
        self._adapted: list[_AdaptedForward] = []
        self._called = False

    @classmethod
    def from_changes(
        cls,
        changes: Mapping[str, WeightChange],
        patcher: ModelPatcher,
        device: torch.device,
        dtype: torch.dtype,
        kept: dict[str, LowRank],
    ) -> Deltas:
        """Build the corrections for the model of `patcher`, one module after another to keep the peak low.

        Args:
            changes: weight → what the tuned model changes in it; each can be changed.
            patcher: a clone of the model, which knows the unpatched weights, loaded or not.
            device, dtype: where and in which dtype the model computes.
            kept: weight → matrices of earlier runs in main memory; those made here are added.

        Raises:
            ValueError: what changes depends on a weight that cannot be read.
        """
        modules: dict[str, ModuleDelta] = {}
        for key, change in changes.items():
            name, _, kind = key.rpartition(".")
            delta = modules.setdefault(name, ModuleDelta())
            module = comfy.utils.get_attr(patcher.model, name)
            if _stays_low_rank(module, kind, change):
                if key not in kept:
                    kept[key] = low_rank_change(change, module.weight.shape).to("cpu", dtype)
                delta.low_rank = kept[key].to(device, dtype)
                continue
            difference = dense_change(change, unpatched_weight(patcher, key, device), key)
            setattr(delta, "dense" if kind == "weight" else "bias", difference.to(device, dtype))
        return cls(modules)

    @staticmethod
    def memory_of(changes: Mapping[str, WeightChange], model: torch.nn.Module, dtype: torch.dtype) -> int:
        """Bytes that the corrections for `model` will take on its device."""
        numbers = 0
        for key, change in changes.items():
            name, _, kind = key.rpartition(".")
            module = comfy.utils.get_attr(model, name)
            shape = getattr(module, kind).shape
            stays = _stays_low_rank(module, kind, change)
            numbers += change.low_rank_numbers(shape) if stays else shape.numel()
        return numbers * dtype.itemsize

    @contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        """Adapt every changed module of `model`; without effect outside `applied_to`."""
        with ExitStack() as stack:
            self._fused = {name for name in self.modules if may_be_fused(model, name)}
            for name, delta in self.modules.items():
                adapted = _AdaptedForward(comfy.utils.get_attr(model, name), delta, self)
                stack.enter_context(adapted)
                self._adapted.append(adapted)
            stack.callback(self._adapted.clear)
            yield

    @contextmanager
    def applied_to(self, rows: Rows) -> Iterator[None]:
        """Make the given batch rows the tuned model's, for model calls inside."""
        previous, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = previous

    @contextmanager
    def in_model_call(self, rows: Rows) -> Iterator[None]:
        """As `applied_to`, for one call of the model.

        Raises:
            ValueError: the host computes some modules past their forward; known after the first call of a run.
        """
        for adapted in self._adapted:
            adapted.stay()
        with self.applied_to(rows):
            yield
        if not self._called:
            self._called = True
            refuse_fused([name for name in self.missed if name in self._fused])

    @property
    def missed(self) -> list[str]:
        """Modules that no call of the model has come to so far; none before the first."""
        return [name for name, delta in self.modules.items() if self._called and not delta.was_added]


class ReplacedForward:
    """Stands in for one module's forward while entered.

    A bound method of a small object, not a closure: torch.compile then guards on its code and attributes, and a later
    run with other tensors of the same shape needs no new graph.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.replaced = module.__dict__.get("forward")
        self.original = module.forward

    def __enter__(self) -> None:
        self.module.forward = self.forward

    def __exit__(self, *_: object) -> None:
        chain = self._chain()
        if self not in chain:  # the host has put its own in place
            return
        if place := chain.index(self):
            above = chain[place - 1]
            above.replaced, above.original = self.replaced, self.original
        elif self.replaced is None:
            del self.module.forward
        else:
            self.module.forward = self.replaced

    def stay(self) -> None:
        """Stand in again where the host has put its own forward in place: injections go and come with a load."""
        in_place = self.module.__dict__.get("forward")
        if getattr(in_place, "__self__", None) is not self and self not in self._chain():
            self.replaced, self.original = self.module.__dict__.get("forward"), self.module.forward
            self.module.forward = self.forward

    def _chain(self) -> list[ReplacedForward]:
        """Those that stand in for the module one over the other, the outermost first."""
        found: list[ReplacedForward] = []
        forward = self.module.__dict__.get("forward")
        while isinstance(of := getattr(forward, "__self__", None), ReplacedForward):
            found.append(of)
            forward = of.original
        return found

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the module computes instead; `original` is its own forward."""
        raise NotImplementedError


class _AdaptedForward(ReplacedForward):
    def __init__(self, module: torch.nn.Module, delta: ModuleDelta, deltas: Deltas) -> None:
        super().__init__(module)
        self.delta, self.deltas = delta, deltas

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = self.original(x, *args, **kwargs)
        rows = self.deltas.rows
        if rows is not None:
            own = rows.of(x)
            self.delta.add(self.module, x[own], out[own])
        return out


ALL_ROWS = Rows(0, 1, 1)


def kept_matrices(base: ModelPatcher, tuned: ModelPatcher, dtype: torch.dtype) -> dict[str, LowRank]:
    """Weight → matrices of `dtype` that runs of this pair have made so far; the caller adds what it makes.

    They stay in main memory for as long as the tuned MODEL lives: stacking the parts of fused weights takes a while for
    a large model, and every run of a sweep would do it again. The host gives a MODEL another `patches_uuid` whenever
    its patches change, so those of an earlier state are dropped.
    """
    state = (base.patches_uuid, tuned.patches_uuid, dtype)
    known = _kept.get(tuned)
    if known is None or known[0] != state:
        known = _kept[tuned] = (state, {})
    return known[1]


def can_be_changed(model: torch.nn.Module, key: str) -> bool:
    """Whether a weight is that or the bias of a linear or convolution module, so that its change can be added on."""
    name, _, kind = key.rpartition(".")
    module = comfy.utils.get_attr(model, name) if name else model
    weight = getattr(module, "weight", None)
    linear = isinstance(module, torch.nn.Linear | CastWeightBiasOp) and not isinstance(module, torch.nn.Embedding)
    return kind in ("weight", "bias") and ((linear and weight is not None and weight.ndim == 2) or is_conv(module))


def _stays_low_rank(module: torch.nn.Module, kind: str, change: WeightChange) -> bool:
    """Whether two small products do: a convolution in groups has a set of kernels for each of them."""
    return kind == "weight" and change.terms is not None and getattr(module, "groups", 1) == 1
