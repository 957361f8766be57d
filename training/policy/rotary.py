"""Gradients of the fused rotary embeddings that hosts since 0.8 compute some families by (Flux, Qwen-Image, Anima, …).

They are operators of the package comfy_kitchen, which has no formula for their gradients, but has the same in plain
PyTorch: a backward pass computes that once more. Newer hosts leave the operators out while they train, though not in
all families.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

_NAMES = tuple(
    f"{norm}rope{half}{one}" for norm in ("apply_", "rms_") for half in ("", "_split_half") for one in ("", "1")
)


@cache
def give_rotary_gradients() -> None:
    """Tell PyTorch the gradients of these operators, where there are some without; once in a process is enough."""
    try:
        from comfy_kitchen.backends.eager import rope
    except ImportError:  # an older host
        return
    for name in _NAMES:
        operator, plain = getattr(rope, f"_op_{name}", None), getattr(rope, name, None)
        if operator is not None and plain is not None and getattr(operator, "_backward_fn", None) is None:
            operator.register_autograd(partial(_backward, plain), setup_context=_keep)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))
    ctx.others = [None if isinstance(value, torch.Tensor) else (value,) for value in inputs]


def _backward(plain: Callable[..., Any], ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Of `plain`, which computes the same, for the inputs that ask for one."""
    tensors = iter(ctx.saved_tensors)
    inputs = [next(tensors).detach() if other is None else other[0] for other in ctx.others]
    # Inputs that were left at their defaults come after those that were given.
    asked = [value for value, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    with torch.enable_grad():
        for value in asked:
            value.requires_grad_()
        outputs = plain(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    known = [(out, of) for out, of in zip(outputs, gradients, strict=True) if of is not None and out.requires_grad]
    outputs, of_outputs = zip(*known, strict=True)
    found = iter(torch.autograd.grad(outputs, asked, of_outputs, allow_unused=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
