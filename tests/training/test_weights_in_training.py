"""Gradients are those of weights in main memory, however the host holds weights and computes attention.

On a GPU weights are moved after they were made, or brought there only while their module computes, and attention may be
computed by kernels without a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management
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


def test_weights_whose_place_another_takes_at_once(training: SimpleNamespace) -> None:
    """As under dynamic VRAM, where the host may do so as soon as a module has computed its output."""
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

    def product(x: torch.Tensor) -> torch.Tensor:
        place.data.copy_(weight)
        out = torch.nn.functional.linear(x, place)
        place.data.fill_(torch.nan)
        return out

    with training.gradients.training_mode(), torch.enable_grad():
        x, place = torch.ones(2, 4, requires_grad=True), torch.empty(3, 4)
        training.gradients._Again.apply(x, product).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 4))


@pytest.mark.parametrize("halved", [False, True])
def test_copies_of_weights_in_another_dtype_are_not_kept(training: SimpleNamespace, halved: bool) -> None:
    """Of a model in few bits: they would be a second model, in 16 bits, until the backward pass is done."""
    family = FAMILIES["SD1.5"]
    expected, model = _gradients(training, family.load(), family), family.load()
    model.set_model_compute_dtype(torch.float32)
    for module in model.model.diffusion_model.modules():
        if isinstance(module, CastWeightBiasOp) and halved:
            module.weight.data = module.weight.data.half()
    shapes = {tuple(w.shape) for n, w in model.model.diffusion_model.named_parameters() if "to_k.weight" in n}
    kept = []

    def noted(predict: Callable) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, _as_is):
            return predict()

    ours = _gradients(training, model, family, False, noted)
    copies = [t for t in kept if t.dtype is torch.float32 and tuple(t.shape) in shapes]
    if halved:
        assert not copies
        for name, gradient in expected.items():
            assert (ours[name] - gradient).norm() < 0.05 * gradient.norm(), name
    else:
        assert copies
        _same(ours, expected)


def test_a_checkpointed_block_computes_cast_weights_twice_and_not_three_times(training: SimpleNamespace) -> None:
    family, calls = FAMILIES["SD1.5"], []
    model = family.load()
    model.set_model_compute_dtype(torch.float32)
    layer = model.model.get_submodule("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q")
    layer.weight.data = layer.weight.data.half()
    product = layer.forward_comfy_cast_weights
    layer.forward_comfy_cast_weights = lambda *args: calls.append(1) or product(*args)
    _gradients(training, model, family, checkpointing=True)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["float8_e4m3fn", "nvfp4"])
def test_quantised_weights_are_constants_in_their_own_memory(training: SimpleNamespace, name: str) -> None:
    """A copy would be a second model, in each call of the first."""
    quant_ops = pytest.importorskip("comfy.quant_ops")
    if name not in getattr(quant_ops, "QUANT_ALGOS", {}):
        pytest.skip(f"this ComfyUI has no {name}")
    layout = quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
    with torch.inference_mode():
        weight = quant_ops.QuantizedTensor.from_float(torch.randn(32, 32), layout)
        layer = torch.nn.Linear(32, 32, bias=False)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    with training.gradients.training_mode(), training.gradients.frozen(layer), torch.enable_grad():
        constant = layer.weight
        assert constant is not weight and constant._qdata.data_ptr() == weight._qdata.data_ptr()
        assert not constant._qdata.is_inference()
        x = torch.randn(2, 32, requires_grad=True)
        torch.nn.functional.linear(x, constant.dequantize()).sum().backward()
    torch.testing.assert_close(x.grad, weight.dequantize().sum(0).expand(2, 32))


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


@pytest.mark.parametrize("name", ["basic", "split", "sub_quad", "pytorch"])
def test_every_attention_of_the_host_where_memory_is_short(training, monkeypatch, name) -> None:
    """It then computes in parts. Sub-quadratic attention is what it takes for Apple's devices, many of AMD and CPUs."""
    family = FAMILIES["SD1.5"]
    expected = _gradients(training, family.load(), family)
    monkeypatch.setattr(attention, "optimized_attention", getattr(attention, f"attention_{name}"))
    short = SimpleNamespace(get_free_memory=lambda _, torch_too=False: (250_000, 250_000) if torch_too else 250_000)
    monkeypatch.setattr(attention, "model_management", short)
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


class _Packed(torch.Tensor):
    """Stands for the tensors of packs that store weights in ways of their own, such as GGUF's."""


def test_weights_of_other_packs_keep_their_kind_and_what_they_say(training: SimpleNamespace) -> None:
    family = FAMILIES["SD1.5"]
    expected, model, seen = _gradients(training, family.load(), family), family.load(), set()
    with torch.inference_mode():
        for module in model.model.diffusion_model.modules():
            if isinstance(module, torch.nn.Linear):
                packed = torch.nn.Parameter(module.weight.detach().clone().as_subclass(_Packed), requires_grad=False)
                packed.stored_as = "Q4"
                module.weight = packed
                module.register_forward_pre_hook(lambda m, _: seen.add((type(m.weight.data), m.weight.stored_as)))
    _same(_gradients(training, model, family), expected)
    assert seen == {(_Packed, "Q4")}


def test_scaled_float8_is_refused_only_where_it_is_computed_in(training, monkeypatch) -> None:
    if not hasattr(comfy.ops, "scaled_fp8_ops"):
        pytest.skip("this ComfyUI has other layers for float8 with a scale")
    model = torch.nn.Sequential(comfy.ops.scaled_fp8_ops().Linear(4, 4))
    model.model_config = SimpleNamespace(optimizations={"fp8": True})
    training.gradients.check_differentiable(model)
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device: True)
    with pytest.raises(ValueError, match=r"^model: 0 computes in 8 bits"):
        training.gradients.check_differentiable(model)


def test_products_by_cublas_ops_are_refused(training: SimpleNamespace) -> None:
    layer = type("Linear", (torch.nn.Linear,), {"__qualname__": "cublas_ops.Linear"})(4, 4)
    with pytest.raises(ValueError, match=r"^model: 0 computes by cublas_ops, .* --fast cublas_ops\.$"):
        training.gradients.check_differentiable(torch.nn.Sequential(layer))


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
