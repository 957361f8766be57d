"""A weight as its checkpoint has it: without the MODEL's patches, loaded or not, however it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.utils
import torch
from comfy.model_patcher import get_key_weight
from comfy.quant_ops import QuantizedTensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_READABLE = (torch.Tensor, torch.nn.Parameter, QuantizedTensor)


def as_loaded(model: ModelPatcher, key: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight as its file has it, where `weight` is what the model has now: the host may have put patches into it."""
    if key in model.backup:
        return model.backup[key].weight
    return model.hook_backup[key][0] if key in model.hook_backup else weight


def unpatched_weight(model: ModelPatcher, key: str, device: torch.device) -> torch.Tensor:
    """A copy in float32 on `device`, of the shape the module acts with.

    The host's own `get_key_patches` does not get past the scales of a quantised weight. Where the module scales its
    inputs before a quantised product, that is part of the weight: a LoRA is made for what the module does as a whole.

    Raises:
        ValueError: it is stored in a way that only its own pack can read (GGUF, bitsandbytes).
    """
    weight, _, convert = get_key_weight(model.model, key)
    weight = as_loaded(model, key, weight)
    if type(weight) not in _READABLE:
        raise ValueError(
            f"tuned: what it changes in {key} depends on the weight, which is stored as {type(weight).__name__} and "
            "cannot be read; load the model from a safetensors file, or choose a LoRA of low-rank matrices alone."
        )
    # A quantised weight has its own way to whole numbers; on its way to a device it keeps its dtype.
    quantised = isinstance(weight, QuantizedTensor)
    whole = weight.to(device, copy=True) if quantised else weight.to(device, torch.float32, copy=True)
    if convert is not None:
        whole = convert(whole, inplace=True)
    name, _, kind = key.rpartition(".")
    smoothing = getattr(comfy.utils.get_attr(model.model, name), "pre_quant_scale", None) if name else None
    whole = whole.float()
    return whole if smoothing is None or kind != "weight" else whole * smoothing.to(whole)
