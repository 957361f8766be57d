"""The host's fused rotary embeddings have the gradients of the same in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

kitchen = pytest.importorskip("comfy_kitchen", reason="this host has no fused rotary embeddings")
rope = pytest.importorskip("comfy_kitchen.backends.eager.rope")
ROWS, TOKENS, HEADS, WIDTH = 2, 5, 3, 8
NAMES = [name for name in dir(kitchen) if name.split("_")[0] in ("apply", "rms") and "rope" in name and name[-1] != "_"]


def _inputs(name: str) -> list[Any]:
    """(queries, keys) or one of them, the angles, and the scales of a norm."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    of_tokens = [normal(ROWS, TOKENS, HEADS, WIDTH) for _ in range(1 if name.endswith("1") else 2)]
    angles = normal(1, TOKENS, 1, WIDTH // 2)
    freqs = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))
    scales = [normal(WIDTH) for _ in of_tokens] if name.startswith("rms") else []
    return [*of_tokens, freqs, *scales]


def _gradients(function: Any, inputs: list[Any]) -> list[torch.Tensor]:
    asked = [value.clone().requires_grad_() for value in inputs]
    outputs = function(*asked)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [torch.randn(out.shape, generator=torch.Generator().manual_seed(2)) for out in outputs]
    sum((weight * out).sum() for weight, out in zip(weights, outputs, strict=True)).backward()
    return [value.grad for value in asked]


@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_is_that_of_plain_pytorch(training, name) -> None:
    with training.gradients.training_mode(), torch.enable_grad():
        inputs = _inputs(name)
        found, expected = (_gradients(getattr(module, name), inputs) for module in (kitchen, rope))
        for own, plain in zip(found, expected, strict=True):
            torch.testing.assert_close(own, plain)
        assert all(gradient.abs().max() > 1e-3 for gradient in found)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("1")])
def test_an_output_that_nobody_uses_has_none(training, name) -> None:
    with training.gradients.training_mode(), torch.enable_grad():
        query, key, *rest = _inputs(name)
        query.requires_grad_()
        rotated, _ = getattr(kitchen, name)(query, key, *rest)
        (found,) = torch.autograd.grad(rotated.square().sum(), query)
        plain, _ = getattr(rope, name)(query, key, *rest)
        torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), query)[0])
