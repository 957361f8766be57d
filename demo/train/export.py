"""From diffusers' names of an SD3 network to the names of ComfyUI's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "model.diffusion_model."

_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def host_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an SD3Transformer2DModel under the names that checkpoints use.

    The inverse of diffusers' convert_sd3_transformer_checkpoint_to_diffusers.

    Raises:
        KeyError: a weight has no place in a checkpoint.
    """
    left = dict(weights)
    found = {"pos_embed": left.pop("pos_embed.pos_embed")}
    depth = 1 + max(int(name.split(".")[1]) for name in left if name.startswith("transformer_blocks."))
    for old, new in _OUTER.items():
        _move(left, old, found, new)
    for index in range(depth):
        before, after = f"transformer_blocks.{index}.", f"joint_blocks.{index}."
        for old, new in _BLOCK.items():
            _move(left, before + old, found, after + new)
        for new, parts in _FUSED.items():
            for kind in ("weight", "bias"):
                if f"{before}{parts[0]}.{kind}" in left:
                    fused = [left.pop(f"{before}{part}.{kind}") for part in parts]
                    found[f"{after}{new}.{kind}"] = torch.cat(fused)
    # Layers without a gate: diffusers has scale before shift, SD3 shift before scale.
    for name in ("final_layer", f"joint_blocks.{depth - 1}.context_block"):
        for kind in ("weight", "bias"):
            key = f"{name}.adaLN_modulation.1.{kind}"
            found[key] = torch.cat(found[key].chunk(2)[::-1])
    if left:
        raise KeyError(f"no name in a checkpoint for {sorted(left)}")
    return {PREFIX + key: tensor.detach().clone() for key, tensor in found.items()}


def _move(source: dict[str, Tensor], old: str, target: dict[str, Tensor], new: str) -> None:
    for kind in ("weight", "bias"):
        if f"{old}.{kind}" in source:
            target[f"{new}.{kind}"] = source.pop(f"{old}.{kind}")
