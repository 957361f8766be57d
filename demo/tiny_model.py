"""A small SD3.5-medium-type checkpoint and a Flow-GRPO-type LoRA, written on the fly from a seed.

Nothing here is trained. The weights are random, arranged so that sampling behaves as with a real model: most of the
prediction is the noise to remove, the rest is a smooth pattern that depends on the text and the timestep. All
parameters that SD3 can use take part, so a test that compares two implementations sees every one.

The files are what a user would download: a checkpoint that stock loader nodes read (MMDiT-X, CLIP-L, 16-channel VAE)
and an adapter folder as PEFT saves it. This module does not need ComfyUI.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from files.replacing import replacing

from .tiny_encoders import CLIP_WIDTH, LATENT_CHANNELS, clip_l_in_checkpoint, vae_state_dict

HEAD_DIM = 64
PATCH = 2
TIMESTEP_DIM = 256

PATCH_VALUES = PATCH * PATCH * LATENT_CHANNELS
"""Numbers in one latent patch; the first so many dimensions of the hidden state carry them."""

NOISE_GAIN = 0.25
"""Size of unit noise in those dimensions; the rest of the hidden state has size 1."""

DENOISE_RATE = 1.25
"""The prediction is this times the noisy latent, plus the pattern: sampling leaves e^-1.25 of the starting noise."""

_TRAINED = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")
LORA_TARGETS = tuple(f"attn.{module}" for module in _TRAINED)
"""The modules Flow-GRPO trains. PEFT matches them as suffixes, so `attn2` of MMDiT-X is not among them."""


@dataclass(frozen=True)
class TinySD3:
    """Shape and seed of the model. The host reads the depth off the width, so the width is 64 · depth."""

    depth: int = 2
    dual_attention_blocks: int = 1
    """The first so many blocks have a second, image-only attention (MMDiT-X); 0 gives SD3.0's blocks."""
    qk_norm: bool = True
    context_dim: int = 4096
    pooled_dim: int = 2048
    pos_embed_max_size: int = 64
    """Largest side of an image in patches of 16 pixels."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(f"depth is {self.depth}, but a small SD3 model needs at least 2 blocks.")
        if not 0 <= self.dual_attention_blocks <= self.depth:
            raise ValueError(
                f"dual_attention_blocks is {self.dual_attention_blocks}, but must be 0 to depth ({self.depth})."
            )

    @property
    def hidden(self) -> int:
        return HEAD_DIM * self.depth


class _Weights(dict[str, Tensor]):
    """A state dict under construction. The random stream of each tensor is named by seed and key, so models that
    differ in one feature share the weights of everything else."""

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed

    def randn(self, key: str, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}:{key}".encode()))
        return torch.randn(shape, generator=generator)

    def linear(self, name: str, out_features: int, in_features: int, gain: float | Tensor = 1.0) -> None:
        """`gain`: size of the outputs for inputs of size 1, a number or (out_features,)."""
        gain = torch.as_tensor(gain)
        weight = self.randn(f"{name}.weight", out_features, in_features) / math.sqrt(in_features)
        self[f"{name}.weight"] = weight * gain.reshape(-1, 1)
        self[f"{name}.bias"] = self.randn(f"{name}.bias", out_features) * gain * 0.05


def mmdit_state_dict(config: TinySD3) -> dict[str, Tensor]:
    """The diffusion model's weights, fp32, with SD3's original names and no prefix."""
    w, hidden = _Weights(config.seed), config.hidden
    basis = _patch_basis()

    w.linear("x_embedder.proj", hidden, PATCH_VALUES, gain=0.02)
    w["x_embedder.proj.weight"][:PATCH_VALUES] += NOISE_GAIN * basis
    w["x_embedder.proj.weight"] = w["x_embedder.proj.weight"].reshape(hidden, LATENT_CHANNELS, PATCH, PATCH)
    w["pos_embed"] = _pos_embed(w, config)

    w.linear("t_embedder.mlp.0", hidden, TIMESTEP_DIM)
    w["t_embedder.mlp.0.weight"] *= _timestep_gain()
    w.linear("t_embedder.mlp.2", hidden, hidden)
    # CLIP-L fills 768 of the text's dimensions; the other encoders' share is zero.
    w.linear("y_embedder.mlp.0", hidden, config.pooled_dim, gain=math.sqrt(config.pooled_dim / CLIP_WIDTH))
    w.linear("y_embedder.mlp.2", hidden, hidden, gain=1.5)
    w.linear("context_embedder", hidden, config.context_dim, gain=math.sqrt(config.context_dim / CLIP_WIDTH))

    for index in range(config.depth):
        _image_block(w, f"joint_blocks.{index}.x_block", config, dual=index < config.dual_attention_blocks)
        _text_block(w, f"joint_blocks.{index}.context_block", config, last=index == config.depth - 1)

    w.linear("final_layer.linear", PATCH_VALUES, hidden, gain=0.05)
    # Patches go in as (channel, row, column) and come out as (row, column, channel).
    back = basis.reshape(PATCH_VALUES, LATENT_CHANNELS, PATCH * PATCH).permute(2, 1, 0).reshape(PATCH_VALUES, -1)
    w["final_layer.linear.weight"][:, :PATCH_VALUES] += DENOISE_RATE / NOISE_GAIN * back
    w.linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden, gain=0.1)
    return dict(w)


def _patch_basis() -> Tensor:
    """(64, 64) orthonormal: the first 16 rows are the channels' means over the 2 × 2 patch, the rest its details."""
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2.0
    return torch.einsum("dp,ce->dcep", hadamard, torch.eye(LATENT_CHANNELS)).reshape(PATCH_VALUES, PATCH_VALUES)


def _pos_embed(w: _Weights, config: TinySD3) -> Tensor:
    """(1, side², hidden): random Fourier features of the position, so that near patches look alike."""
    side, features = config.pos_embed_max_size, config.hidden - PATCH_VALUES
    axis = torch.arange(side) - (side - 1) / 2
    position = torch.cartesian_prod(axis, axis)
    phase = position @ (0.4 * w.randn("frequency", 2, features)) + 2 * math.pi * w.randn("phase", features)
    in_patch_values = 0.02 * w.randn("pos_embed", side * side, PATCH_VALUES)
    return torch.cat([in_patch_values, math.sqrt(2) * phase.cos()], dim=1)[None]


def _timestep_gain() -> Tensor:
    """(256,) gain on the timestep's cosines and sines: the fast ones would make steps look unrelated."""
    frequency = torch.exp(-math.log(10000) * torch.arange(TIMESTEP_DIM // 2) / (TIMESTEP_DIM // 2))
    return (1.5 / (1 + (frequency * 1000 / 6) ** 2)).repeat(2)


def _image_block(w: _Weights, name: str, config: TinySD3, *, dual: bool) -> None:
    hidden = config.hidden
    write = _image_gain(hidden) * math.sqrt(2 / config.depth)
    for attention in ("attn", "attn2") if dual else ("attn",):
        _attention(w, f"{name}.{attention}", config, write)
        query, key, _ = w[f"{name}.{attention}.qkv.weight"].split(hidden)
        # Queries and keys are alike and see positions more than noise: patches attend to their neighbourhood.
        query[:, :PATCH_VALUES] *= 0.1
        key.mul_(0.3).add_(query, alpha=0.95)
    _mlp(w, f"{name}.mlp", config, write)
    _modulation(w, f"{name}.adaLN_modulation.1", config, chunks=9 if dual else 6)


def _text_block(w: _Weights, name: str, config: TinySD3, *, last: bool) -> None:
    """The text half of a block; nobody reads the text after the last one, so that has no output."""
    write = None if last else torch.full((config.hidden,), 0.5)
    _attention(w, f"{name}.attn", config, write)
    if write is not None:
        _mlp(w, f"{name}.mlp", config, write)
    _modulation(w, f"{name}.adaLN_modulation.1", config, chunks=2 if last else 6)


def _attention(w: _Weights, name: str, config: TinySD3, write: Tensor | None) -> None:
    w.linear(f"{name}.qkv", 3 * config.hidden, config.hidden)
    if config.qk_norm:
        for norm in ("ln_q", "ln_k"):
            w[f"{name}.{norm}.weight"] = 0.8 + 0.1 * w.randn(f"{name}.{norm}.weight", HEAD_DIM)
    if write is not None:
        w.linear(f"{name}.proj", config.hidden, config.hidden, gain=write)


def _mlp(w: _Weights, name: str, config: TinySD3, write: Tensor) -> None:
    w.linear(f"{name}.fc1", 4 * config.hidden, config.hidden)
    w.linear(f"{name}.fc2", config.hidden, 4 * config.hidden, gain=write)


def _modulation(w: _Weights, name: str, config: TinySD3, *, chunks: int) -> None:
    """adaLN: (shift, scale, gate) two or three times, or (shift, scale) where there is no output to gate."""
    w.linear(name, chunks * config.hidden, config.hidden, gain=0.5)
    w[f"{name}.bias"].reshape(chunks, config.hidden)[2::3] += 0.7


def _image_gain(hidden: int) -> Tensor:
    """(hidden,) size of what the blocks add: nearly the same over a patch, so that pictures are smooth."""
    gain = torch.full((hidden,), 0.5)
    gain[:LATENT_CHANNELS] = 0.8
    gain[LATENT_CHANNELS:PATCH_VALUES] = 0.02
    return gain


def write_checkpoint(
    path: Path | str,
    config: TinySD3,
    *,
    with_clip: bool = True,
    with_vae: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint for CheckpointLoaderSimple. `dtype` is the diffusion model's; CLIP-L (246 MB of the
    257 MB of a depth-2 file) and VAE are fp16."""
    sd = {f"model.diffusion_model.{key}": tensor.to(dtype) for key, tensor in mmdit_state_dict(config).items()}
    if with_clip:
        sd |= clip_l_in_checkpoint()
    if with_vae:
        sd |= {f"first_stage_model.{key}": tensor for key, tensor in vae_state_dict().items()}
    path = Path(path)
    with replacing(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in sd.items()}, temporary)
    return path


def write_peft_adapter(
    folder: Path | str,
    config: TinySD3,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    seed: int = 1,
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    init_scale: float = 0.14,
) -> Path:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT's `save_pretrained` does, fp32.

    The patterns are PEFT's: a module's name, its end, or a regular expression → rank or alpha. `init_scale` is the
    size of B·A before alpha/r, compared with the weights it is added to, at depth 2.
    """
    rank_pattern = dict(rank_pattern or {})
    adapter_config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        rank_pattern=rank_pattern,
        alpha_pattern=dict(alpha_pattern or {}),
        target_modules=list(LORA_TARGETS),
        init_lora_weights="gaussian",
        inference_mode=True,
        auto_mapping={
            "base_model_class": "SD3Transformer2DModel",
            "parent_library": "diffusers.models.transformers.transformer_sd3",
        },
    )
    folder = Path(folder)
    with replacing(folder / "adapter_model.safetensors") as temporary:
        weights = _adapter_weights(config, rank, rank_pattern, seed, init_scale * math.sqrt(2 / config.depth))
        save_file(weights, temporary, metadata={"format": "pt"})
    adapter_config.save_pretrained(str(folder))
    return folder


def _adapter_weights(
    config: TinySD3, rank: int, rank_pattern: Mapping[str, int], seed: int, scale: float
) -> dict[str, torch.Tensor]:
    w = _Weights(seed)
    for module in lora_modules(config):
        r = next((r for pattern, r in rank_pattern.items() if re.match(rf"(.*\.)?({pattern})$", module)), rank)
        size = scale * _image_gain(config.hidden) if module.endswith(".to_out.0") else scale
        name = f"base_model.model.{module}"
        w[f"{name}.lora_A.weight"] = w.randn(f"{module}.A", r, config.hidden) / math.sqrt(config.hidden)
        w[f"{name}.lora_B.weight"] = w.randn(f"{module}.B", config.hidden, r) / math.sqrt(r)
        w[f"{name}.lora_B.weight"] *= torch.as_tensor(size).reshape(-1, 1)
    return dict(w)


def lora_modules(config: TinySD3) -> Iterator[str]:
    """The adapted modules' names in diffusers' model; the last block has no `to_add_out`."""
    for index in range(config.depth):
        for target in LORA_TARGETS:
            if target != "attn.to_add_out" or index < config.depth - 1:
                yield f"transformer_blocks.{index}.{target}"
