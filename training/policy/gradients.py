"""Conditions under which a loaded model of the host can be differentiated; all of it is undone at the end.

The host runs nodes in inference mode and builds models for inference. Their weights cannot be saved for a backward
pass there, or ask for gradients of their own, and activations of a whole model do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from comfy.ops import CastWeightBiasOp

from ...rlg_sampler.weights.deltas import ReplacedForward
from .rotary import give_rotary_gradients

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_WITHOUT_GRADIENT = ("AsymW4A8Int8Layout", "TensorCoreConvRotW4A4Layout")
"""The host's quantised layouts whose products have no backward pass."""
_ATTENTION = ("basic", "split", "pytorch", "xformers")
"""The host's ways to compute attention that have a backward pass; Sage, Flash and int8 have none, and sub-quadratic
attention none where memory is short."""


@contextmanager
def training_mode() -> Iterator[None]:
    """Leave the host's inference mode, without gradients as yet, and have the host compute what has a gradient.

    Newer hosts have fused kernels without one, and a flag to do without; rollouts must be computed as updates are.
    """
    give_rotary_gradients()
    flag = getattr(comfy.model_management, "in_training", None)
    with torch.inference_mode(False), torch.no_grad():
        if flag is None:
            yield
            return
        comfy.model_management.in_training = True
        try:
            yield
        finally:
            comfy.model_management.in_training = flag


def check_differentiable(model: torch.nn.Module) -> None:
    """Raises ValueError where no gradient can pass through the model's weights, as they are stored or computed with."""
    for name, module in model.named_modules():
        if "cublas_ops" in type(module).__qualname__:
            raise ValueError(
                f"model: {name} computes by cublas_ops, through which no gradients pass; start ComfyUI without "
                "--fast cublas_ops."
            )
        if _multiplies_in_fp8(model, module) or _has_quantised_input(module):
            raise ValueError(
                f"model: {name} computes in 8 bits, through which this ComfyUI passes no gradients; load the model in "
                "bf16, or as fp8_e4m3fn without the fast matrix products of fp8."
            )
    for name, weight in model.named_parameters():
        if getattr(weight, "_layout_cls", None) in _WITHOUT_GRADIENT:
            raise ValueError(
                f"model: {name} is stored as {weight._layout_cls}, which ComfyUI computes without gradients; load the "
                "model in another precision, such as fp8, nvfp4 or bf16."
            )


def _multiplies_in_fp8(model: torch.nn.Module, module: torch.nn.Module) -> bool:
    kind = type(module).__qualname__
    if "scaled_fp8_op" not in kind:
        return "fp8_ops" in kind
    # Older hosts' way to keep weights in 8 bits with a scale: whether it computes in them is in none of its attributes.
    config = getattr(model, "model_config", None)
    wanted = getattr(config, "optimizations", {}).get("fp8", False)
    device = comfy.model_management.get_torch_device()
    return wanted and comfy.model_management.supports_fp8_compute(device)


def _has_quantised_input(module: torch.nn.Module) -> bool:
    """Whether a layer quantises its input too, in a host that does not know the gradient of that."""
    if (
        getattr(module, "layout_type", None) is None
        or module._full_precision_mm
        or hasattr(comfy.ops, "QuantLinearFunc")
    ):
        return False
    always = hasattr(comfy.ops, "get_layout_class")  # since 0.8, before that where the file has a scale for it
    return always or getattr(module, "input_scale", None) is not None


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Make every weight of `model` a constant that a backward pass can use; the memory stays the same."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and (_is_of_inference(tensor) or tensor.requires_grad):
                        replaced.append((tensors, name, tensor))
                        tensors[name] = _constant(tensor)
            _forget_casts(module)
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


def attention_options(of_model: Mapping[str, Any]) -> dict[str, Any]:
    """Transformer options with which attention has a gradient, whatever the host was started with or a MODEL brings.

    Args:
        of_model: the MODEL's own ones; where a node has put another attention, it may have none.
    """
    of_host = comfy.ldm.modules.attention.optimized_attention.__name__.removeprefix("attention_")
    if of_host in _ATTENTION and "optimized_attention_override" not in of_model:
        return {}

    def with_gradient(_: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)

    return {"optimized_attention_override": with_gradient}


def is_streamed(patcher: ModelPatcher) -> bool:
    """Whether the host may have some weights of a loaded MODEL on its device only while they are used."""
    of_newer_hosts = getattr(patcher, "is_dynamic", lambda: False)
    return patcher.model.model_lowvram or of_newer_hosts()


@contextmanager
def streamed(patcher: ModelPatcher, casts: bool = False) -> Iterator[None]:
    """Let gradients pass through a loaded MODEL's modules whose weights are on the device only while these compute.

    Autograd would keep such weights for the backward pass: all of them in the end, for which there was no room, or
    views of memory that has another weight in it by then. So a module keeps its input, and computes once more.

    Args:
        patcher: the MODEL.
        casts: so too with weights that are cast for each product. Needless where blocks are checkpointed, which keep
            those of one block alone.
    """
    all_of_them = is_streamed(patcher)
    computed_in = getattr(patcher.model, "manual_cast_dtype", None) if casts else None
    with ExitStack() as stack:
        for module in patcher.model.modules() if all_of_them or computed_in else ():
            if isinstance(module, CastWeightBiasOp) and (all_of_them or _is_cast(module, computed_in)):
                stack.enter_context(_ComputedAgain(module))
        yield


def _is_cast(module: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Whether the module's weight is kept in another dtype than it is computed in."""
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dtype != dtype


class _ComputedAgain(ReplacedForward):
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.original(x, *args, **kwargs)
        return _Again.apply(x, lambda of: self.original(of, *args, **kwargs))


class _Again(torch.autograd.Function):
    """A function of one tensor that keeps nothing else for its gradient.

    Torch's checkpoint would leave the second computation at the last tensor that it needs, before the host has heard
    that the weight may go.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        # Of copies: once the function is left the host may put another weight in this one's place.
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.detach().clone(), _as_it_is),
        ):
            out = ctx.function(x)
        (of_x,) = torch.autograd.grad(out, x, gradient)
        return of_x, None


def _as_it_is(kept: torch.Tensor) -> torch.Tensor:
    return kept


def _is_of_inference(tensor: torch.Tensor) -> bool:
    """Whether a backward pass would refuse the tensor, as one that was made in inference mode."""
    try:
        return tensor._version is None
    except RuntimeError:  # `is_inference` says no to a weight that was moved to its device after it was made there
        return True


def _forget_casts(module: torch.nn.Module) -> None:
    """Have newer hosts cast anew what their module keeps on the GPU, since it was cast in inference mode."""
    kept = [getattr(module, name, None) for name in ("_v_weight", "_v_bias")]
    if any(isinstance(tensor, torch.Tensor) and _is_of_inference(tensor) for tensor in kept):
        module._v_signature = None


def _constant(tensor: torch.Tensor) -> torch.Tensor:
    of_another_pack = type(tensor.data) is not torch.Tensor and not hasattr(tensor.data, "__tensor_flatten__")
    if not _is_of_inference(tensor):
        alias = tensor.detach()
    elif type(tensor.data) is torch.Tensor:
        alias = _alias(tensor)
    elif of_another_pack:
        alias = _alias(tensor).as_subclass(type(tensor.data))
    else:  # quantised: a wrapper of several tensors
        wrapper = tensor.data
        names, about = wrapper.__tensor_flatten__()
        parts = {name: _alias(getattr(wrapper, name)) for name in names}
        alias = type(wrapper).__tensor_unflatten__(parts, about, tensor.size(), tensor.stride())
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    constant = torch.nn.Parameter(alias, requires_grad=False) if is_parameter else alias
    if of_another_pack:  # such as GGUF's, which note there how it is stored
        vars(constant).update(vars(tensor))
    if hasattr(tensor, "_model_dtype"):  # newer hosts note there what they cast it to
        constant._model_dtype = tensor._model_dtype
    return constant


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that was not made in inference mode."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
