"""From diffusers' names of an SD3 network to the names of ComfyUI's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from torch import Tensor

from demo.tiny_encoders import CLIP_WIDTH
from demo.tiny_model import mmdit_state_dict
from demo.train.base import CONFIG

PREFIX = "model.diffusion_model."


def host_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the demo's SD3Transformer2DModel under the names that checkpoints use.

    The inverse of diffusers' conversion, which renames, splits and reorders: numbers in the place of weights show where
    each of them goes.

    Raises:
        KeyError: a weight has no place in a checkpoint, or is missing.
    """
    layout = mmdit_state_dict(replace(CONFIG, context_dim=CLIP_WIDTH, pooled_dim=CLIP_WIDTH))
    sizes = [tensor.numel() for tensor in layout.values()]
    numbers = torch.arange(sum(sizes)).split(sizes)
    numbered = {name: part.reshape(layout[name].shape) for name, part in zip(layout, numbers, strict=True)}
    places = convert_sd3_transformer_checkpoint_to_diffusers(numbered)
    if unlike := places.keys() ^ weights.keys():
        raise KeyError(f"no name in a checkpoint for {sorted(unlike)}, or nothing for it")
    values = torch.empty(sum(sizes), dtype=next(iter(weights.values())).dtype)
    for name, tensor in weights.items():
        values[places[name].flatten()] = tensor.detach().flatten()
    found = zip(layout.items(), values.split(sizes), strict=True)
    return {f"{PREFIX}{name}": part.reshape(like.shape) for (name, like), part in found}
