"""The trainable LoRA on a loaded model: base weights as they are, small matrices in float32 that have gradients.

Each adapted module adds `scale · (x @ downᵀ) @ upᵀ` to its output, as guidance does (weights/deltas.py), but out of
place, so that nothing is overwritten that a backward pass needs. Switched off, the same model is the base, which is the
reference that the policy is held near.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
import torch.nn.functional as F
from torch.nn import Parameter

from ...rlg_sampler.weights.deltas import ReplacedForward
from ..streams import stream
from .gradient_scale import GradientScale
from .targets import Target


@dataclass(frozen=True)
class Matrices:
    """A target's pair: `down` (rank, inputs), `up` (outputs, rank)."""

    target: Target
    down: Parameter
    up: Parameter


class Policy:
    """A LoRA under training.

    Args:
        targets: what it changes.
        rank, alpha: of each target; its change is alpha / rank · up @ down.
        seed: of `down`, which starts as N(0, 1/rank²), PEFT's "gaussian"; `up` starts as 0, so the policy as the base.
        device: where the model computes.
    """

    def __init__(self, targets: Sequence[Target], rank: int, alpha: float, seed: int, device: torch.device) -> None:
        self.rank, self.scale = rank, alpha / rank
        self.matrices = [_start(target, rank, seed, device) for target in targets]
        self._enabled = True
        self._of_gradients = GradientScale()

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Every trainable tensor by name, `….down` and `….up`."""
        pairs = ({f"{m.target.name}.down": m.down, f"{m.target.name}.up": m.up} for m in self.matrices)
        return {name: parameter for pair in pairs for name, parameter in pair.items()}

    @contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        """Adapt the modules of `model`, the one that the targets were found in."""
        by_module: dict[str, list[Matrices]] = {}
        for matrices in sorted(self.matrices, key=lambda m: m.target.rows):
            by_module.setdefault(matrices.target.module, []).append(matrices)
        with ExitStack() as stack:
            for name, parts in by_module.items():
                stack.enter_context(_Adapted(comfy.utils.get_attr(model, name), parts, self))
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, for calls inside."""
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    @contextmanager
    def with_gradients(self, scale: GradientScale) -> Iterator[None]:
        """A call of the model whose gradients are scaled."""
        before, self._of_gradients = self._of_gradients, scale
        try:
            yield
        finally:
            self._of_gradients = before

    @contextmanager
    def with_values(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Other values of the parameters, such as their average, for calls inside."""
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = values[name].to(parameter)
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    def change(self, parts: Sequence[Matrices], x: torch.Tensor, outputs: int) -> torch.Tensor | None:
        """What the LoRA adds to a module's output, (..., outputs); None while it is switched off.

        Args:
            parts: the matrices of this module, in the order of their rows.
            x: the module's input.
        """
        if not self._enabled:
            return None
        own_range = self._of_gradients.out_of
        hidden = F.linear(x, own_range(torch.cat([part.down for part in parts])).to(x.dtype))
        columns, end = [], 0
        for part, own in zip(parts, hidden.split(self.rank, dim=-1), strict=True):
            start, stop = part.target.rows
            columns += [] if start == end else [own.new_zeros(*own.shape[:-1], start - end)]
            columns.append(F.linear(own, (self.scale * own_range(part.up)).to(x.dtype)))
            end = stop
        columns += [] if end == outputs else [hidden.new_zeros(*hidden.shape[:-1], outputs - end)]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


class _Adapted(ReplacedForward):
    def __init__(self, module: torch.nn.Module, parts: Sequence[Matrices], policy: Policy) -> None:
        super().__init__(module)
        self.parts, self.policy = parts, policy

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = self.original(x, *args, **kwargs)
        change = self.policy.change(self.parts, x, out.shape[-1])
        return out if change is None else out + change.to(out.dtype)


def _start(target: Target, rank: int, seed: int, device: torch.device) -> Matrices:
    down = torch.randn(rank, target.inputs, generator=stream(seed, "down", target.name)) / rank
    up = torch.zeros(target.outputs, rank)
    return Matrices(target, Parameter(down.to(device)), Parameter(up.to(device)))
