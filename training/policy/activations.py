"""How much memory a backward pass keeps from the forward pass, measured before there is one.

Activations are many times what sampling takes. Where they do not fit, blocks are computed twice (checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ...rlg_sampler.weights.deltas import ReplacedForward
from .blocks import blocks_of


@dataclass(frozen=True)
class Kept:
    """Bytes for one picture and one prediction.

    Attributes:
        whole: of everything.
        checkpointed: where each block keeps its inputs alone, and one of them is computed again.
    """

    whole: int
    checkpointed: int


def kept_for_backward(model: torch.nn.Module, forward: Callable[[], Any]) -> Kept:
    """Measure what `forward`, a call of the model that enables gradients, would keep.

    Nothing is kept meanwhile but what one block computes.
    """
    weights = set(_storages(model.parameters()))
    with ExitStack() as stack:
        blocks = [_Measured(block, weights) for block in blocks_of(model)]
        for block in blocks:
            stack.enter_context(block)
        outside: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(outside.append, _unused):
            forward()
    rest = _bytes(outside, weights)
    inner, inputs = [n for block in blocks for n in block.kept], [n for block in blocks for n in block.inputs]
    return Kept(rest + sum(inner), rest + sum(inputs) + max(inner, default=0))


def in_sentence(kept: Kept, rows: int, free: int) -> str:
    """What was measured, and what follows from it.

    Args:
        rows: pictures whose backward pass is made at once.
        free: bytes.
    """
    sizes = rows * kept.whole, rows * kept.checkpointed, free
    whole, checkpointed, there = (f"{size / 1e6:,.0f} MB" for size in sizes)
    if rows * kept.whole <= free:
        return f"a backward pass keeps {whole} of activations, and {there} are free."
    told = f"a backward pass would keep {whole} of activations, and {there} are free: "
    told += f"blocks are computed twice, to keep {checkpointed}"
    return told + ("." if rows * kept.checkpointed <= free else ", which does not fit either; lower batch_size.")


class _Measured(ReplacedForward):
    """A block that notes bytes: `kept` of each of its calls, and of their `inputs`."""

    def __init__(self, module: torch.nn.Module, weights: set[int]) -> None:
        super().__init__(module)
        self._weights = weights
        self.kept: list[int] = []
        self.inputs: list[int] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, _unused):
            out = self.original(*args, **kwargs)
        self.kept.append(_bytes(saved, self._weights))
        self.inputs.append(_bytes([a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)], self._weights))
        return out


def _bytes(tensors: Iterable[torch.Tensor], weights: set[int]) -> int:
    return sum(size for address, size in _storages(tensors).items() if address not in weights)


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Address → bytes. Quantised weights have no storage of their own."""
    plain = (tensor.untyped_storage() for tensor in tensors if type(tensor.data) is torch.Tensor)
    return {storage.data_ptr(): storage.nbytes() for storage in plain}


def _unused(_: Any) -> torch.Tensor:
    raise RuntimeError("nothing was kept: this call only measured")
