"""MPS: a CLIP whose image looks once more at the words of the prompt that matter for a condition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention, silu

from . import host, preparation
from .clip import config_of, tokens
from .network_reward import NetworkReward
from .weights import StateDict, fill, from_transformers, read_module, split

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The published condition of the overall preference."""

_LEAST_LIKENESS = 0.01
"""Words of the prompt less like the condition than this share of the likest are masked (the published model's)."""
_CLIP, _CROSS = "model.", "cross_model."
_HEAD_WIDTH = 64


class Mps(NetworkReward):
    """Multi-dimensional Preference Score, overall: CLIP ViT-H/14 and four layers of cross-attention (arXiv 2405.14705).

    The words that a prompt's image must not look at depend on that prompt alone. The published code divides by the
    largest likeness of the whole batch instead; for a batch of one, which its evaluation scores, both are the same.
    """

    name = "mps"
    unit = "logit"
    range = (-100.0, 100.0)
    source = "MPS, arXiv 2405.14705"

    def __init__(self, path: Path) -> None:
        """Args:
            path: the published MPS_overall_checkpoint.pth, which is a whole pickled module, or its weights.

        Raises:
            ValueError: it cannot be read or holds another model.
        """
        self._model = _Model(read_module(path), path)
        super().__init__(host.Managed(self._model), preparation.crop(self._model.side, "transformers"))

    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self._model(pixels, tokens([*prompts, CONDITION]).to(pixels.device))


class _Model(nn.Module):
    def __init__(self, state: StateDict, path: Path) -> None:
        from transformers import CLIPModel

        super().__init__()
        clip, cross = split(state, (_CLIP, _CROSS), path)
        self.clip = from_transformers(CLIPModel, path, config_of(clip, path), clip)
        self.side: int = self.clip.config.vision_config.image_size
        # The published names say which module adds its input to its output; the frequencies are no weights.
        cross = {re.sub(r"\.fn\.", ".", k): v for k, v in cross.items() if not k.endswith(".inv_freq")}
        self.cross = _CrossModel(self.clip.config.projection_dim, cross)
        fill(self.cross, cross, path)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(batch,) of pixels (batch, 3, side, side) and tokens (batch + 1, 77), the last row of the condition."""
        patches = self.clip.visual_projection(self.clip.vision_model(pixels).last_hidden_state)
        with torch.no_grad():
            read = self.clip.text_model(tokens)
            words = self.clip.text_projection(read.last_hidden_state)
            ends = self.clip.text_projection(read.pooler_output[:-1])
            likeness = (words[:-1] @ words[-1].T).amax(-1)  # (batch, 77): of each word to the likest of the condition
            likeness = likeness / likeness.amax(-1, keepdim=True)
        seen = self.cross(patches, words[:-1], likeness > _LEAST_LIKENESS)[:, 0]
        return self.clip.logit_scale.exp() * cosine_similarity(ends, seen)


class _CrossModel(nn.Module):
    """Image tokens that look at words, then at each other, layer by layer."""

    def __init__(self, width: int, state: StateDict) -> None:
        """`state` says how many layers there are and how wide they are inside."""
        super().__init__()
        numbers = {key.split(".")[1] for key in state}
        queries, inner = (state.get(f"layers.0.0.{key}.weight") for key in ("to_out", "ff.2"))
        sizes = (1, 1) if queries is None or inner is None else (queries.shape[1] // _HEAD_WIDTH, inner.shape[1])
        self.layers = nn.ModuleList(
            nn.ModuleList([_CrossAttention(width, *sizes), _SelfAttention(width, *sizes)]) for _ in numbers
        )

    def forward(self, image: torch.Tensor, words: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        for to_words, to_image in self.layers:
            image = to_image(to_words(image, words, visible))
        return image


class _CrossAttention(nn.Module):
    """All heads look at one key and value of each word; a feed-forward layer runs beside them."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * _HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(width, 2 * _HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * _HEAD_WIDTH, width, bias=False)
        self.ff = nn.Sequential(nn.Linear(width, 2 * inner, bias=False), _SwiGlu(), nn.Linear(inner, width, bias=False))

    def forward(self, x: torch.Tensor, words: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        key, value = self.to_kv(words).chunk(2, dim=-1)
        seen = scaled_dot_product_attention(_heads(self.to_q(y)), key[:, None], value[:, None], visible[:, None, None])
        return x + self.to_out(seen.transpose(1, 2).flatten(2)) + self.ff(y)


class _SelfAttention(nn.Module):
    """The same among the tokens themselves, by where they are (rotary); one product makes all that is needed."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self._parts = (heads * _HEAD_WIDTH, _HEAD_WIDTH, _HEAD_WIDTH, 2 * inner)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self._parts), bias=False)
        self.attn_out = nn.Linear(heads * _HEAD_WIDTH, width, bias=False)
        self.ff_out = nn.Sequential(_SwiGlu(), nn.Linear(inner, width, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, key, value, inner = self.fused_attn_ff_proj(self.norm(x)).split(self._parts, dim=-1)
        angles = _angles(x.shape[1], x.device)
        seen = scaled_dot_product_attention(
            _rotated(_heads(queries), angles), _rotated(key[:, None], angles), value[:, None]
        )
        return x + self.attn_out(seen.transpose(1, 2).flatten(2)) + self.ff_out(inner)


class _SwiGlu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = x.chunk(2, dim=-1)
        return silu(gate) * value


def _heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads · 64) → (batch, heads, tokens, 64)."""
    return x.unflatten(-1, (-1, _HEAD_WIDTH)).transpose(1, 2)


def _angles(count: int, device: torch.device) -> torch.Tensor:
    """(tokens, 64) of rotary embeddings (arXiv 2104.09864): each frequency for both halves."""
    frequencies = 10000.0 ** -(torch.arange(0, _HEAD_WIDTH, 2, device=device) / _HEAD_WIDTH)
    return torch.outer(torch.arange(count, device=device), frequencies).repeat(1, 2)


def _rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
