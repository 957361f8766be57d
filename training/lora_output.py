"""The trained LoRA as a folder that PEFT, diffusers, ComfyUI's own loader and ours read, each at full strength.

    adapter_model.safetensors, adapter_config.json       PEFT, and RLG Load LoRA under the folder's name
    pytorch_lora_weights.safetensors                     diffusers' pipelines, and ComfyUI's own LoRA loader

They want other names for the same modules, hence two files. PEFT keeps a LoRA's strength, alpha / r, beside the weights
in `adapter_config.json`, which ComfyUI's own loader does not read. So the strength is multiplied into the matrices and
the files say alpha = r: then there is none to be missed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.lora
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..files.replacing import advice, replacing
from ..rlg_sampler.weights.peft_config import CONFIG_NAME, WEIGHTS_NAME
from .policy.trainable_lora import Policy

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


def save_lora(
    policy: Policy, values: Mapping[str, torch.Tensor], folder: Path, model: ModelPatcher, recipe: Mapping[str, str]
) -> Path:
    """Write a LoRA.

    Args:
        policy: says what is trained, and how strong it is.
        values: of its parameters, by name.
        folder: becomes the adapter; files of these names in it are replaced.
        model: the MODEL it was trained on.
        recipe: how it was made, for the files' metadata.

    Returns:
        PEFT's file with the weights.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    names = [matrices.target.name for matrices in policy.matrices]
    pairs = {n: (_stored(values[f"{n}.down"]), _stored(values[f"{n}.up"] * policy.scale)) for n in names}
    peft = {
        f"base_model.model.{name}.lora_{side}.weight": matrix
        for name, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    metadata = {"format": "pt", **recipe}
    try:
        _write(folder / WEIGHTS_NAME, peft, metadata)
        _write(folder / DIFFUSERS_NAME, _for_pipelines(pairs, model, policy.rank), metadata)
        with replacing(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(_peft_config(policy.rank, names), indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OSError(f"name: the LoRA cannot be written to {folder} ({error}); {advice(error)}.") from error
    return folder / WEIGHTS_NAME


def _write(path: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def _for_pipelines(
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], model: ModelPatcher, rank: int
) -> dict[str, torch.Tensor]:
    """The matrices under names that both diffusers' pipelines and the host know for the model's family."""
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = {}
    for name, (down, up) in pairs.items():
        kohya = f"lora_unet_{name.replace('.', '_')}"
        if f"transformer.{name}" not in known and kohya in known and f"diffusion_model.{name}" not in known:
            weights[f"{kohya}.lora_down.weight"], weights[f"{kohya}.lora_up.weight"] = down, up
            weights[f"{kohya}.alpha"] = torch.tensor(float(rank))
        else:
            prefix = "transformer" if f"transformer.{name}" in known else "diffusion_model"
            weights[f"{prefix}.{name}.lora_A.weight"], weights[f"{prefix}.{name}.lora_B.weight"] = down, up
    return weights


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
