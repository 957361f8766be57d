"""Whether the patches of a LoRA file can be applied to a model: asked before sampling, where a failure is cheap.

The host finds out while it samples, with an error about tensors or, for some kinds, only with a line in its log; a
value that is no number gives a black picture without any sign.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import comfy.utils
import torch
from comfy.weight_adapter import WeightAdapterBase
from comfy.weight_adapter.boft import BOFTAdapter
from comfy.weight_adapter.lora import LoRAAdapter
from comfy.weight_adapter.oft import OFTAdapter

from ..messages import shown

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# What a patch is for: a weight of the model, or (weight, (dim, start, length)) for a part of a fused one.
Target = str | tuple[Any, ...]
_LARGEST = torch.finfo(torch.float32).max


def check_tensors(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Every tensor of a file is there as it says, and every `.alpha` is one finite number.

    Raises:
        ValueError: one is not.
    """
    for key, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or _is_larger_than_its_data(tensor):
            raise ValueError(
                f"lora_name: '{name}' holds {shown(key)} without the numbers of its shape; save it as plain tensors, "
                "in a .safetensors file."
            )
        if key.endswith(".alpha") and not _is_finite_number(tensor):
            raise ValueError(
                f"lora_name: '{name}' holds a {shown(key)} that is no finite number; download the file again."
            )


def _is_larger_than_its_data(tensor: torch.Tensor) -> bool:
    """A pickled file can give a small storage any shape: reading that would fill the memory."""
    return tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes()


def _is_finite_number(tensor: torch.Tensor) -> bool:
    real = tensor.dtype != torch.bool and not tensor.is_complex()
    return tensor.numel() == 1 and real and bool(tensor.float().isfinite())


def check_patches(patches: Mapping[Target, Any], model: ModelPatcher, name: str) -> None:
    """Every patch fits its weight, can be applied by the host, and holds numbers.

    Args:
        patches: as `comfy.lora.load_lora` gives them.
        model: what they are for.
        name: how messages name the file.

    Raises:
        ValueError: one does not; the message names its module.
    """
    for target, patch in patches.items():
        key, part = (target, None) if isinstance(target, str) else (target[0], target[1])
        module = key.removesuffix(".weight")
        expected = _shape(model.model, key, name)
        if part is not None:
            expected[part[0]] = part[2]
        _check_ranks(patch, module, name)
        found = _patched_shape(patch, expected)
        if found is not None and found != expected:
            raise ValueError(
                f"lora_name: '{name}' does not fit this model: {module} expects a weight of shape {expected}, "
                f"the LoRA has {found}. Choose a LoRA that was trained for this checkpoint."
            )
        _check_numbers(patch, module, name)
        if isinstance(patch, WeightAdapterBase):
            _check_applies(patch, key, expected, name)


def _shape(model: torch.nn.Module, key: str, name: str) -> list[int]:
    # The attribute's shape, not the state dict's, which for quantised weights is that of their storage.
    try:
        return list(comfy.utils.get_attr(model, key).shape)
    except AttributeError:
        raise ValueError(
            f"lora_name: '{name}' does not fit this model: it changes {shown(key)}, which this model does not have. "
            "Choose a LoRA that was trained for this checkpoint."
        ) from None


def _check_ranks(patch: Any, module: str, name: str) -> None:
    if not isinstance(patch, LoRAAdapter):
        return
    up, down, _, mid, *_ = patch.weights
    if up.ndim < 2 or down.ndim < 2 or 0 in (*up.shape, *down.shape):
        raise ValueError(
            f"lora_name: '{name}' has no matrices for {module}: their shapes are {list(up.shape)} and "
            f"{list(down.shape)}; download the file again."
        )
    if mid is None and up[0].numel() != down.shape[0]:
        raise ValueError(
            f"lora_name: '{name}' is damaged: for {module} lora_A (or lora_down) has rank {down.shape[0]}, "
            f"lora_B (or lora_up) has rank {up[0].numel()}; download the file again."
        )


def _patched_shape(patch: Any, expected: list[int]) -> list[int] | None:
    """Shape of the weight that a patch was made for, or None where only the host can tell."""
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, _, reshape = patch.weights
        if reshape is not None or mid is not None:
            return reshape
        rows, columns = up.shape[0], down[0].numel()
        return [rows, *expected[1:]] if columns == torch.Size(expected[1:]).numel() else [rows, *down.shape[1:]]
    if isinstance(patch, tuple) and patch[0] in ("diff", "set") and len(patch[1]) == 1:
        return list(patch[1][0].shape)
    return None


def _check_numbers(patch: Any, module: str, name: str) -> None:
    held = patch.weights if isinstance(patch, WeightAdapterBase) else patch[1]
    tensors = [tensor for tensor in held if isinstance(tensor, torch.Tensor)]
    if kinds := {str(t.dtype).removeprefix("torch.") for t in tensors if not t.is_floating_point()}:
        raise ValueError(
            f"lora_name: '{name}' holds {', '.join(sorted(kinds))} values for {module}, which are no weights; choose "
            "a LoRA of float values."
        )
    largest = [tensor.float().abs().amax().item() for tensor in tensors if tensor.numel()]
    if isinstance(patch, LoRAAdapter) and len(largest) == 2:
        # A bound of what a product of the two can come to: it overflows before a picture shows more than black.
        rank, alpha = patch.weights[1].shape[0], patch.weights[2]
        largest.append(largest[0] * largest[1] * abs(rank if alpha is None else alpha))
    if not all(value <= _LARGEST for value in largest):
        raise ValueError(
            f"lora_name: '{name}' holds NaN, infinity or values too large for {module}; download the file again, or "
            "take a checkpoint from before its training diverged."
        )


def _check_applies(patch: WeightAdapterBase, key: str, expected: list[int], name: str) -> None:
    """Let the host apply the patch to a weight without data: that fails as it would with data, at no cost."""
    # The host compares the values of these with their constraint (alpha), which takes data.
    constrained = isinstance(patch, OFTAdapter | BOFTAdapter) and (patch.weights[2] or 0.0) > 0.0
    weight = torch.zeros(expected) if constrained else torch.empty(expected, device="meta")
    with _errors_in_the_log() as errors:
        try:
            patched = patch.calculate_weight(weight, key, 1.0, 1.0, None, lambda change: change, torch.float32, weight)
            fits = list(patched.shape) == expected
        except Exception as error:  # of any kind: the host hands the file's tensors to torch as they are
            errors.append(str(error))
            fits = False
    if errors or not fits:
        reason = f" ({shown(errors[0])})" if errors else ""
        raise ValueError(
            f"lora_name: '{name}' does not fit this model: ComfyUI cannot apply what it holds for "
            f"{key.removesuffix('.weight')}{reason}. Choose a LoRA that was trained for this checkpoint."
        )


@contextmanager
def _errors_in_the_log() -> Iterator[list[str]]:
    """What this thread logs as errors: where the host cannot apply an adapter, it says so there and goes on."""
    errors: list[str] = []
    own = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == own:
                errors.append(record.getMessage())

    listener = Listener(logging.ERROR)
    logging.getLogger().addHandler(listener)
    try:
        yield errors
    finally:
        logging.getLogger().removeHandler(listener)
