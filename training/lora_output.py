"""The trained LoRA as a folder that PEFT, diffusers, ComfyUI's own loader and ours read, each at full strength.

PEFT keeps a LoRA's strength, alpha / r, beside the weights in `adapter_config.json`, which ComfyUI's own loader does
not read. So the strength is multiplied into the matrices and the file says alpha = r: then there is none to be missed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..files.replacing import replacing
from ..rlg_sampler.weights.peft_config import CONFIG_NAME, WEIGHTS_NAME
from .policy import Policy

_PREFIX = "base_model.model."


def save_lora(policy: Policy, values: Mapping[str, torch.Tensor], folder: Path, recipe: Mapping[str, str]) -> Path:
    """Write a LoRA as PEFT does.

    Args:
        policy: says what is trained, and how strong it is.
        values: of its parameters, by name.
        folder: becomes the adapter; what it had of this name is replaced.
        recipe: how it was made, for the file's metadata.

    Returns:
        The file with the weights.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    weights = {}
    for matrices in policy.matrices:
        name = matrices.target.name
        weights[f"{_PREFIX}{name}.lora_A.weight"] = _stored(values[f"{name}.down"])
        weights[f"{_PREFIX}{name}.lora_B.weight"] = _stored(values[f"{name}.up"] * policy.scale)
    config = _peft_config(policy.rank, [matrices.target.name for matrices in policy.matrices])
    try:
        with replacing(folder / WEIGHTS_NAME) as temporary:
            save_file(weights, temporary, metadata={"format": "pt", **recipe})
        with replacing(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"name: the LoRA cannot be written to {folder} ({error}); make room on the disk, or check its rights."
        ) from error
    return folder / WEIGHTS_NAME


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().cpu().contiguous()


def _peft_config(rank: int, modules: list[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": "gaussian",
        "inference_mode": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": modules,
    }
