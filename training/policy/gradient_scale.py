"""Gradients in a range that half precision has: those of losses over many pictures and pixels would be 0 in it.

Models of SD1.5, SDXL, SD3.5 and Wan compute in float16 on most GPUs, and its smallest number is 6e-8. So a gradient is
multiplied by a power of two where it enters the model, and divided by the same in float32 where it leaves it. That is
exact: in bfloat16 and float32 nothing changes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_EXPONENT = -4
"""The largest gradient at the output of a call is below 2 to the power of this: far above what float16 rounds to 0, and
as far below what is infinite in it, since weights add up the gradients of thousands of tokens."""


class GradientScale:
    """The scale of one prediction, known once its backward pass begins. It may take several calls of the model.

    Args:
        amplified: how many times the gradient of a prediction those of its calls may be, such as CFG.
    """

    factor = 1.0

    def __init__(self, amplified: float = 1.0) -> None:
        self.exponent = _EXPONENT - math.ceil(math.log2(max(amplified, 1.0)))

    def into(self, *outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the model gives, float32 and all at once; their gradients are scaled from here on."""
        return _Into.apply(self, *outputs)

    # A compiled model would take the factor of its first backward pass for a constant.
    @torch.compiler.disable
    def out_of(self, value: torch.Tensor) -> torch.Tensor:
        """What goes into the model, float32; its gradient is as if there was no scale."""
        return _OutOf.apply(self, value)


class _Into(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: GradientScale, *outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.scale = scale
        ctx.set_materialize_grads(False)  # zeros for what a loss leaves out would go through the whole model
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        scale = ctx.scale
        largest = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
        usable = 0.0 < largest < math.inf
        scale.factor = math.ldexp(1.0, scale.exponent - math.frexp(largest)[1]) if usable else 1.0
        return None, *(None if gradient is None else gradient * scale.factor for gradient in gradients)


class _OutOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: GradientScale, value: torch.Tensor) -> torch.Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient / ctx.scale.factor
