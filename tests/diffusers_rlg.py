"""RLG as its research code does it, on diffusers and PEFT: the independent side of the parity tests.

Nothing here comes from the host or from the extension. diffusers reads the checkpoint file with its own converter,
PEFT puts the adapter folder on it without merging (the base is the same model with the adapter disabled), and the
latents move by the scheduler's own steps. Each model gets its own CFG, then the velocities are mixed
(arXiv 2508.21016).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from peft import PeftModel

from demo.tiny_model import TinySD3

SHIFT = 3.0  # of SD3's schedule
VAE_SCALE, VAE_SHIFT = 1.5305, 0.0609  # scaling_factor and shift_factor of SD3's VAE


@dataclass(frozen=True)
class Text:
    """Text embeddings, one row per picture: `tokens` (batch, length, 4096) and `pooled` (batch, 2048), float32."""

    tokens: torch.Tensor
    pooled: torch.Tensor


def transformer(checkpoint: Path, config: TinySD3) -> SD3Transformer2DModel:
    """The transformer of a checkpoint file, float32 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        SD3Transformer2DModel(**_diffusers_config(config)).save_config(folder)
        return SD3Transformer2DModel.from_single_file(str(checkpoint), config=folder, local_files_only=True)


def load(checkpoint: Path, adapter: Path, config: TinySD3, trainable: bool = False) -> PeftModel:
    """The same with a PEFT folder's adapter beside its weights."""
    return PeftModel.from_pretrained(transformer(checkpoint, config), str(adapter), is_trainable=trainable).eval()


def scheduler(steps: int) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler as SD3 pipelines have it; `sigmas` holds steps + 1 values."""
    flow = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    flow.set_timesteps(steps)
    return flow


def sample(
    model: PeftModel, noise: torch.Tensor, positive: Text, negative: Text, *, steps: int, cfg: float, scale: float
) -> torch.Tensor:
    """Latents as SD3's pipeline hands them to the VAE, which is also how the host's samplers return them.

    Args:
        model: as `load` returns it.
        noise: where sampling starts, (batch, 16, height, width).
        positive, negative: text embeddings with as many rows as `noise`.
        steps: Euler steps.
        cfg: text guidance of both models.
        scale: s of RLG; 0 = base, 1 = with the adapter.
    """
    flow, latents = scheduler(steps), noise
    for timestep in flow.timesteps:
        mixed = torch.zeros_like(latents)
        if scale != 0:
            mixed += scale * _guided_velocity(model, latents, timestep, positive, negative, cfg)
        if scale != 1:
            with model.disable_adapter():
                mixed += (1 - scale) * _guided_velocity(model, latents, timestep, positive, negative, cfg)
        latents = flow.step(mixed, timestep, latents, return_dict=False)[0]
    return latents / VAE_SCALE + VAE_SHIFT


def _guided_velocity(
    model: PeftModel, latents: torch.Tensor, timestep: torch.Tensor, positive: Text, negative: Text, cfg: float
) -> torch.Tensor:
    if cfg == 1:  # as in the pipelines
        return velocity(model, latents, timestep, positive)
    uncond, cond = velocity(model, latents, timestep, negative, positive).chunk(2)
    return uncond + cfg * (cond - uncond)


def velocity(model: PeftModel, latents: torch.Tensor, timestep: torch.Tensor, *texts: Text) -> torch.Tensor:
    """The model's predictions for each of `texts`, one after the other: (texts * batch, 16, height, width)."""
    return model(
        hidden_states=latents.repeat(len(texts), 1, 1, 1),
        timestep=timestep.expand(len(texts) * len(latents)),
        encoder_hidden_states=torch.cat([text.tokens for text in texts]),
        pooled_projections=torch.cat([text.pooled for text in texts]),
        return_dict=False,
    )[0]


def _diffusers_config(config: TinySD3) -> dict[str, object]:
    """What differs from diffusers' defaults, which are SD3's: 16 channels, patches of 2, heads of 64."""
    return {
        "num_layers": config.depth,
        "num_attention_heads": config.depth,
        "joint_attention_dim": config.context_dim,
        "caption_projection_dim": config.hidden,
        "pos_embed_max_size": config.pos_embed_max_size,
        "dual_attention_layers": tuple(range(config.dual_attention_blocks)),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }
