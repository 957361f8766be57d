"""Tiny base and tuned models for the tests, built the ways a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from safetensors.torch import load_file, save_file

from demo.tiny_model import TinySD3, write_checkpoint, write_peft_adapter

SIZE = 16  # side of the latents
TOKENS = 12
CLOSE = 1e-5  # largest difference allowed between two float32 ways to the same result, relative to the largest value
SAMPLING = {"seed": 7, "steps": 5, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal"}


def write_model(models: Path, name: str, config: TinySD3 | None = None) -> Path:
    """A float32 checkpoint of the denoiser alone, in a host's models folder."""
    return write_checkpoint(
        models / "checkpoints" / f"{name}.safetensors",
        config or TinySD3(),
        with_clip=False,
        with_vae=False,
        dtype=torch.float32,
    )


def write_lora(models: Path, name: str, config: TinySD3 | None = None, **adapter: Any) -> Path:
    """A PEFT adapter folder in a host's models folder."""
    return write_peft_adapter(models / "loras" / name, config or TinySD3(), **adapter)


def as_single_file(folder: Path, file: Path) -> Path:
    """The same adapter as one file that stock loaders apply in full: scale in alpha tensors, no config."""
    weights = load_file(folder / "adapter_model.safetensors")
    for key in [k for k in weights if k.endswith(".lora_A.weight")]:
        rank = weights[key].shape[0]
        weights[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(2.0 * rank)
    save_file(weights, file)
    return file


def load_checkpoint(path: Path) -> Any:
    """The MODEL of a checkpoint: a new set of weights at each call."""
    model, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)
    return model


def tiny_unet() -> Any:
    """An SD1.5-type MODEL (eps prediction) with random weights, as tiny as the host's configuration allows."""
    config = comfy.supported_models.SD15(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1],
            "channel_mult": [1], "transformer_depth": [1], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1],
            "context_dim": 32, "num_heads": 4, "use_spatial_transformer": True, "adm_in_channels": None,
            "use_linear_in_transformer": False, "use_temporal_attention": False, "disable_self_attentions": None,
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    unet = comfy.model_base.BaseModel(config)
    generator = torch.Generator().manual_seed(0)
    for weight in unet.diffusion_model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / (weight[0].numel() ** 0.5 + 1)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(unet, cpu, cpu)


def conds(seed: int, batch: int = 1, **extra: Any) -> list:
    """A CONDITIONING of SD3's shape with random text."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, TOKENS, 4096, generator=generator)
    return [[text, {"pooled_output": torch.randn(batch, 2048, generator=generator), **extra}]]


def empty_latent(batch: int = 1, size: int = SIZE) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(batch, 16, size, size)}


def picture_latent(batch: int = 1, seed: int = 11) -> dict[str, torch.Tensor]:
    """A latent that is not empty, as an encoded picture."""
    return {"samples": torch.randn(batch, 16, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))}


def task(batch: int = 1, **changes: Any) -> dict[str, Any]:
    """The inputs that a sampler node needs besides its models."""
    inputs = {"positive": conds(1), "negative": conds(2), "latent_image": empty_latent(batch), "denoise": 1.0}
    return {**SAMPLING, **inputs, **changes}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of `b`."""
    assert torch.isfinite(b).all()
    return ((a - b).abs().max() / b.abs().max()).item()
