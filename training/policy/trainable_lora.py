"""The trainable LoRA on a loaded model: base weights as they are, small matrices in float32 that have gradients.

Each adapted module adds `scale · (x @ downᵀ) @ upᵀ` to its output, as guidance does (weights/deltas.py), here with a
gradient. Switched off, the same model is the base, which is the reference that the policy is held near.
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
from ...rlg_sampler.weights.low_rank import WRITE_INTO_A_VIEW
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

    def added(self, parts: Sequence[Matrices], x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A module's output with what the LoRA adds to it, or the output itself while it is switched off.

        Args:
            parts: the matrices of this module, in the order of their rows.
            x: the module's input.
            out: its output, which may be written into.
        """
        if not self._enabled:
            return out
        own_range = self._of_gradients.out_of
        hidden = F.linear(x, own_range(torch.cat([part.down for part in parts])).to(x.dtype)).to(out.dtype)
        ups = [(self.scale * own_range(part.up)).to(out.dtype) for part in parts]
        rows = [part.target.rows for part in parts]
        if out.is_contiguous() and out.device.type in WRITE_INTO_A_VIEW and not torch.compiler.is_compiling():
            # Torch does not let all views be written into, and does not say which; a copy gives the same bits.
            if out.requires_grad and out._is_view():
                out = out.clone()
            return _Added.apply(out, hidden, rows, *ups)
        columns, end = [], 0
        for (start, stop), own, up in zip(rows, hidden.split(self.rank, dim=-1), ups, strict=True):
            columns += [] if start == end else [own.new_zeros(*own.shape[:-1], start - end)]
            columns.append(F.linear(own.contiguous(), up))  # as in LowRank.add
            end = stop
        columns += [] if end == out.shape[-1] else [hidden.new_zeros(*hidden.shape[:-1], out.shape[-1] - end)]
        return out + (columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1))


class _Added(torch.autograd.Function):
    """`out[..., rows] += hidden @ upᵀ` for each up, in place: no module of a host needs its output for its gradient.

    One fused multiply-add instead of a product and a second pass over the output.
    """

    @staticmethod
    def forward(
        ctx: Any, out: torch.Tensor, hidden: torch.Tensor, rows: Sequence[tuple[int, int]], *ups: torch.Tensor
    ) -> torch.Tensor:
        ctx.rows, ctx.shape = rows, hidden.shape
        owns = hidden.reshape(-1, hidden.shape[-1]).chunk(len(ups), dim=1)
        flat = out.view(-1, out.shape[-1])
        for (start, stop), own, up in zip(rows, owns, ups, strict=True):
            flat[:, start:stop].addmm_(own, up.t())
        ctx.save_for_backward(hidden, *ups)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *ups = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        owns = hidden.reshape(-1, hidden.shape[-1]).chunk(len(ups), dim=1)
        of_rows = [flat[:, start:stop] for start, stop in ctx.rows]
        of_hidden = torch.cat([of @ up for of, up in zip(of_rows, ups, strict=True)], dim=1)
        of_ups = [of.t() @ own for of, own in zip(of_rows, owns, strict=True)]
        return gradient, of_hidden.view(ctx.shape), None, *of_ups


class _Adapted(ReplacedForward):
    def __init__(self, module: torch.nn.Module, parts: Sequence[Matrices], policy: Policy) -> None:
        super().__init__(module)
        self.parts, self.policy = parts, policy

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.policy.added(self.parts, x, self.original(x, *args, **kwargs))


def _start(target: Target, rank: int, seed: int, device: torch.device) -> Matrices:
    down = torch.randn(rank, target.inputs, generator=stream(seed, "down", target.name)) / rank
    up = torch.zeros(target.outputs, rank)
    return Matrices(target, Parameter(down.to(device)), Parameter(up.to(device)))
