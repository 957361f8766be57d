"""Conditions under which a loaded model of the host can be differentiated; all of it is undone at the end.

The host runs nodes in inference mode and builds models for inference. Their weights cannot be saved for a backward
pass there, or ask for gradients of their own, and activations of a whole model do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
import torch.utils.checkpoint

from ..rlg_sampler.weights.deltas import ReplacedForward

_WITHOUT_GRADIENT = ("AsymW4A8Int8Layout", "TensorCoreConvRotW4A4Layout")
"""The host's quantised layouts whose products have no backward pass."""
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


@contextmanager
def training_mode() -> Iterator[None]:
    """Leave the host's inference mode, without gradients as yet, and have the host compute what has a gradient.

    Newer hosts have fused kernels without one, and a flag to do without; rollouts must be computed as updates are.
    """
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
    """Raises ValueError where no gradient can pass through the model's weights, as they are stored."""
    for name, weight in model.named_parameters():
        if getattr(weight, "_layout_cls", None) in _WITHOUT_GRADIENT:
            raise ValueError(
                f"model: {name} is stored as {weight._layout_cls}, which ComfyUI computes without gradients; load the "
                "model in another precision, such as fp8, nvfp4 or bf16."
            )


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Make every weight of `model` a constant that a backward pass can use; the memory stays the same."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                        replaced.append((tensors, name, tensor))
                        tensors[name] = _constant(tensor)
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


@contextmanager
def differentiable_blocks(model: torch.nn.Module, checkpointing: bool) -> Iterator[None]:
    """Let gradients pass through the blocks that a model is a repetition of.

    Some blocks of the host write into their input (Flux adds to its residual stream in place, after a norm has saved it
    for the backward pass), so here they and their norms get copies. A checkpointed block would not even notice: its
    second pass would begin with what the first one left.

    Args:
        checkpointing: keep the inputs of each block alone for the backward pass, which then computes it once more.
    """
    with ExitStack() as stack:
        for block in blocks_of(model):
            for norm in (child for child in block.children() if "Norm" in type(child).__name__):
                stack.enter_context(_OnCopies(norm))
            stack.enter_context(_OnCopies(block))
            if checkpointing:
                stack.enter_context(_Checkpointed(block))
        yield


class _OnCopies(ReplacedForward):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        return self.original(*(_copied(a) for a in args), **{name: _copied(a) for name, a in kwargs.items()})


class _Checkpointed(ReplacedForward):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(
            self.original, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )


def _copied(argument: Any) -> Any:
    is_tensor = isinstance(argument, torch.Tensor)
    return argument.clone() if is_tensor and argument.is_floating_point() else argument


def blocks_of(model: torch.nn.Module, inside: bool = False) -> Iterator[torch.nn.Module]:
    """The outermost modules in lists of modules: what models are a repetition of."""
    for child in model.children():
        container = isinstance(child, _CONTAINERS)
        if inside and not container and next(child.children(), None) is not None:
            yield child
        else:
            yield from blocks_of(child, inside or container)


def _constant(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_inference():
        alias = tensor.detach()
    elif type(tensor.data) is torch.Tensor:
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    else:
        alias = tensor.detach().clone()  # quantised: a wrapper of several tensors, small beside what they stand for
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(alias, requires_grad=False) if is_parameter else alias
