"""A weight as its checkpoint has it: without the MODEL's patches, loaded or not, however it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.utils
import torch
from comfy.model_patcher import get_key_weight

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def unpatched_weight(model: ModelPatcher, key: str, device: torch.device) -> torch.Tensor:
    """A copy in float32 on `device`, of the shape the module acts with.

    The host's own `get_key_patches` does not get past the scales of a quantised weight. Where the module scales its
    inputs before a quantised product, that is part of the weight: a LoRA is made for what the module does as a whole.
    """
    weight, _, convert = get_key_weight(model.model, key)
    if key in model.hook_backup:
        weight = model.hook_backup[key][0]
    elif key in model.backup:
        weight = model.backup[key].weight
    whole = weight.to(device, torch.float32, copy=True)
    if convert is not None:
        whole = convert(whole, inplace=True)
    name, _, kind = key.rpartition(".")
    smoothing = getattr(comfy.utils.get_attr(model.model, name), "pre_quant_scale", None) if name else None
    return whole.float() if smoothing is None or kind != "weight" else whole * smoothing.to(whole)
