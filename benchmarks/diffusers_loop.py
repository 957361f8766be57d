"""The research reference's way: diffusers' transformer with a PEFT adapter, switched off for the base prediction."""

from __future__ import annotations

from pathlib import Path

import comfy.latent_formats
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import PeftModel
from safetensors.torch import load_file

from evaluation.host import device

from .task import CFG, SCALE, Elapsed, Method, Sample, Task

_HEAD_DIM = 64


def load_transformer(checkpoint: Path, adapter: Path) -> PeftModel:
    """The checkpoint as diffusers' model, with the adapter on it, not merged."""
    weights = convert_sd3_transformer_checkpoint_to_diffusers(load_file(checkpoint))
    width = weights["pos_embed.proj.weight"].shape[0]
    blocks = {int(k.split(".")[1]) for k in weights if k.startswith("transformer_blocks.")}
    dual = {int(k.split(".")[1]) for k in weights if ".attn2." in k}
    qk_norm = "rms_norm" if any(".norm_q." in k for k in weights) else None
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=len(blocks),
            attention_head_dim=_HEAD_DIM,
            num_attention_heads=width // _HEAD_DIM,
            caption_projection_dim=width,
            joint_attention_dim=weights["context_embedder.weight"].shape[1],
            pos_embed_max_size=int(weights["pos_embed.pos_embed"].shape[1] ** 0.5),
            dual_attention_layers=tuple(sorted(dual)),
            qk_norm=qk_norm,
        )
    transformer.load_state_dict(weights, assign=True)
    return PeftModel.from_pretrained(transformer, str(adapter)).eval().to(device())


def diffusers_peft(model: PeftModel) -> Method:
    """Two forward passes a step, adapter on and off, each with the CFG batch of two."""

    def sample(task: Task) -> Sample:
        task, batch = task.to(device()), task.noise.shape[0]
        text = torch.cat([p[0].expand(batch, -1, -1) for p in (task.negative, task.positive)])
        pooled = torch.cat([p[1].expand(batch, -1) for p in (task.negative, task.positive)])

        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            timestep = (1000 * sigma).expand(2 * batch)
            uncond, cond = model(
                hidden_states=torch.cat([x, x]),
                timestep=timestep,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                return_dict=False,
            )[0].chunk(2)
            return uncond + CFG * (cond - uncond)

        x = task.noise
        with Elapsed() as steps:
            for sigma, following in zip(task.sigmas[:-1], task.sigmas[1:], strict=True):
                tuned = velocity(x, sigma)
                with model.disable_adapter():
                    base = velocity(x, sigma)
                x = x + (following - sigma) * (base + SCALE * (tuned - base))
        return Sample(comfy.latent_formats.SD3().process_out(x).cpu(), steps, set_up=0.0)

    return Method(sample, (model,))
