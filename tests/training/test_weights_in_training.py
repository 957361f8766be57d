"""Gradients are those of weights in main memory, however the host holds weights and computes attention.

On a GPU weights are moved after they were made, or brought there only while their module computes, and attention may be
computed by kernels without a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.ops
import pytest
import torch
import training_tasks as tasks
from comfy.ops import CastWeightBiasOp

from pairs import FAMILIES


def _gradients(
    training: SimpleNamespace,
    model: Any,
    family: Any,
    checkpointing: bool = False,
    predicted: Callable[[Callable], torch.Tensor] = lambda predict: predict(),
) -> dict[str, torch.Tensor]:
    """Of a LoRA's matrices, those that have one; `predicted` makes the prediction by calling its argument."""
    policy = tasks.random_policy(training, model)

    def backward(run: Any) -> None:
        x = torch.randn(2, *family.latent, generator=torch.Generator().manual_seed(5)) * run.sigmas[1]
        with torch.enable_grad():
            predicted(lambda: run.x0(x, 1)).square().mean().backward()

    tasks.x0(training, model, policy, family, backward, cfg=1.0, checkpointing=checkpointing)
    return {name: p.grad.clone() for name, p in policy.parameters.items() if p.grad is not None and p.grad.any()}


def _same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert expected and ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["Flux", "SD1.5"])
def test_weights_that_were_moved_to_a_device_after_they_were_made(training: SimpleNamespace, name: str) -> None:
    """By the host, outside of inference mode: no inference tensors any more, and autograd refuses them all the same."""
    tasks.skip_without_gradients(name)
    family = FAMILIES[name]
    expected, model = _gradients(training, family.load(), family), family.load()
    with training.gradients.training_mode():
        for weight in model.model.diffusion_model.parameters():
            weight.data = weight.data.clone()
    assert not any(weight.is_inference() for weight in model.model.diffusion_model.parameters())
    _same(_gradients(training, model, family), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["Flux", "SD1.5"])
def test_weights_that_are_on_the_device_only_while_they_are_used(
    training: SimpleNamespace, name: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.skip_without_gradients(name)
    family = FAMILIES[name]
    model, expected = family.load(), _gradients(training, family.load(), family, checkpointing)
    monkeypatch.setattr(training.gradients, "is_streamed", lambda patcher: True)
    kept = []

    def noted(predict: Callable) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.untyped_storage().data_ptr()) or t, _as_is
        ):
            return predict()

    _same(_gradients(training, model, family, checkpointing, noted), expected)
    modules = [module for module in model.model.diffusion_model.modules() if isinstance(module, CastWeightBiasOp)]
    weights = {weight.untyped_storage().data_ptr() for module in modules for weight in module.parameters()}
    assert kept and weights and not weights & set(kept)


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_which_models_are_streamed(training: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["SD1.5"].load()
    assert not training.gradients.is_streamed(model)
    monkeypatch.setattr(model.model, "model_lowvram", True)
    assert training.gradients.is_streamed(model)


def test_attention_without_a_backward_pass(training: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Sage's kernels: q and k of a LoRA would learn nothing, without a sign."""
    family = FAMILIES["SD1.5"]
    expected = _gradients(training, family.load(), family)

    @attention.wrap_attn
    @torch.no_grad()
    def attention_sage(*args: Any, **kwargs: Any) -> torch.Tensor:
        return attention.attention_pytorch(*args, **kwargs)

    attention_sage.__name__ = "attention_sage"
    monkeypatch.setattr(attention, "optimized_attention", attention_sage)
    _same(_gradients(training, family.load(), family), expected)


def test_an_attention_of_the_model_s_own_without_a_backward_pass(training: SimpleNamespace) -> None:
    """As nodes put it there that patch Sage attention."""
    family = FAMILIES["SD1.5"]
    expected, model = _gradients(training, family.load(), family), family.load()

    @torch.no_grad()
    def without_gradient(function: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = without_gradient
    _same(_gradients(training, model, family), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_small_gradients_pass_through_half_precision(training: SimpleNamespace, checkpointing: bool) -> None:
    """Those of a mean over many pictures and pixels are smaller than any number that float16 has."""
    family = FAMILIES["SD1.5"]
    expected, half = _gradients(training, family.load(), family), family.load()
    half.set_model_compute_dtype(torch.float16)
    small = 2.0**-20
    ours = _gradients(training, half, family, checkpointing, lambda predict: predict() * small)
    assert expected and ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] / small**2 - gradient).norm() < 0.05 * gradient.norm(), name


@pytest.mark.parametrize("kind", ["fast products of fp8", "quantised inputs"])
def test_layers_that_compute_without_a_gradient_are_refused(training: SimpleNamespace, kind: str) -> None:
    """They would learn nothing, or draw other pictures than they learn from."""
    if kind == "fast products of fp8":
        layer = comfy.ops.fp8_ops.Linear(4, 4)
    elif hasattr(comfy.ops, "QuantLinearFunc"):
        pytest.skip("this ComfyUI has a gradient for quantised inputs")
    else:
        layer = torch.nn.Linear(4, 4)
        layer.layout_type, layer.input_scale, layer._full_precision_mm = "TensorCoreFP8Layout", torch.ones(()), False
        training.gradients.check_differentiable(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"^model: deep.0 computes in 8 bits.*\.$"):
        training.gradients.check_differentiable(torch.nn.ModuleDict({"deep": torch.nn.Sequential(layer)}))
