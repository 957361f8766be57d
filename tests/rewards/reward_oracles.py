"""The published reward models written out from their papers' code, on state dicts under the published names.

Only torch's functional layers: nothing of transformers' models, so that a wrong key, order or epsilon there shows.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

StateDict = Mapping[str, Tensor]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixels(images: Tensor) -> Tensor:
    """IMAGE of the model's own size, so that nothing has to be resized → (batch, 3, side, side).

    As 8 bits have it, but where a gradient is asked for.
    """
    values = images if images.requires_grad else (images * 255).to(torch.uint8).float() / 255
    return (values.movedim(-1, 1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


MPS_CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
    "instance, texture, quantity, attributes, position, number, location, word, things."
)


def clip_tokens(prompts: list[str], padding: bool | str = True) -> Tensor:
    """By transformers' tokenizer; padded to the longest of them, or to 77 if that is "max_length"."""
    return _clip_tokenizer()(prompts, padding=padding, truncation=True, max_length=77, return_tensors="pt").input_ids


@functools.cache
def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(Path(folder_paths.__file__).parent / "comfy" / "sd1_tokenizer")


def jpeg_kilobytes(picture: np.ndarray) -> float:
    """DDPO's (arXiv 2305.13301) size of a picture, (height, width, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=95)
    return file.tell() / 1000


def open_clip_cosines(state: StateDict, images: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """(batch,): open_clip's `CLIP` (model.py), image with its text."""
    image, text = open_clip_image(state, images, heads), open_clip_text(state, tokens, heads)
    return F.cosine_similarity(image, text)


def open_clip_image(state: StateDict, images: Tensor, heads: int) -> Tensor:
    return _norm(state, "visual.ln_post", _patches(state, images, heads)[:, 0], 1e-5) @ state["visual.proj"]


def open_clip_text(state: StateDict, tokens: Tensor, heads: int) -> Tensor:
    words = _words(state, tokens, heads)
    return words[torch.arange(len(words)), tokens.argmax(-1)] @ state["text_projection"]


def _patches(state: StateDict, images: Tensor, heads: int) -> Tensor:
    x = F.conv2d(pixels(images), state["visual.conv1.weight"], stride=state["visual.conv1.weight"].shape[-1])
    x = x.flatten(2).mT
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    return _residual_blocks(state, "visual.transformer.resblocks", _norm(state, "visual.ln_pre", x, 1e-5), heads, None)


def _words(state: StateDict, tokens: Tensor, heads: int) -> Tensor:
    x = F.embedding(tokens, state["token_embedding.weight"]) + state["positional_embedding"][: tokens.shape[1]]
    causal = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    return _norm(state, "ln_final", _residual_blocks(state, "transformer.resblocks", x, heads, causal), 1e-5)


def mps(state: StateDict, cross: StateDict, images: Tensor, prompts: list[str]) -> Tensor:
    """(batch,): MPS's `infer_one_sample` with the mask of its `CLIPModel.forward` (trainer/models), one by one.

    Args:
        state: CLIP's with one head, under open_clip's names.
        cross: of `Cross_model`.
    """
    rows = ([prompt, MPS_CONDITION] for prompt in prompts)
    tokens = (clip_tokens(row, "max_length") for row in rows)
    return torch.cat(
        [_mps(state, cross, image[None], *row.split(1)) for image, row in zip(images, tokens, strict=True)]
    )


def _mps(state: StateDict, cross: StateDict, image: Tensor, prompt: Tensor, condition: Tensor) -> Tensor:
    x = _patches(state, image, 1) @ state["visual.proj"]
    text, conditions = (_words(state, tokens, 1) @ state["text_projection"] for tokens in (prompt, condition))
    likeness = torch.einsum("bid,bjd->bji", text, conditions).amax(1, keepdim=True)  # (1, 1, 77)
    mask = torch.where(likeness / likeness.max() > 0.01, 0.0, float("-inf"))
    for number in range(_count(cross, "layers")):
        x = x + _mps_cross_attention(cross, f"layers.{number}.0.fn", x, text, mask)
        x = x + _mps_parallel_block(cross, f"layers.{number}.1.fn", x)
    end = text[torch.arange(len(text)), prompt.argmax(-1)]
    return state["logit_scale"].exp() * F.cosine_similarity(end, x[:, 0])


def _mps_cross_attention(state: StateDict, name: str, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], state[f"{name}.norm.weight"])
    key, value = (text @ state[f"{name}.to_kv.weight"].T).chunk(2, -1)
    queries = (y @ state[f"{name}.to_q.weight"].T).split(64, dim=-1)
    seen = [((q * 64**-0.5) @ key.mT + mask).softmax(-1) @ value for q in queries]
    inner, gate = (y @ state[f"{name}.ff.0.weight"].T).chunk(2, -1)
    beside = (gate * gate.sigmoid() * inner) @ state[f"{name}.ff.2.weight"].T
    return torch.cat(seen, -1) @ state[f"{name}.to_out.weight"].T + beside


def _mps_parallel_block(state: StateDict, name: str, x: Tensor) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], state[f"{name}.norm.weight"])
    width, inner = state[f"{name}.attn_out.weight"].shape[1], state[f"{name}.ff_out.1.weight"].shape[1]
    q, key, value, ff = (y @ state[f"{name}.fused_attn_ff_proj.weight"].T).split([width, 64, 64, 2 * inner], -1)
    seen = [((_turned(part) * 64**-0.5) @ _turned(key).mT).softmax(-1) @ value for part in q.split(64, dim=-1)]
    inner, gate = ff.chunk(2, -1)
    beside = (gate * gate.sigmoid() * inner) @ state[f"{name}.ff_out.1.weight"].T
    return torch.cat(seen, -1) @ state[f"{name}.attn_out.weight"].T + beside


def _turned(x: Tensor) -> Tensor:
    """Rotary embedding as a product of complex numbers: entries n and n + 32 are one."""
    rates = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    turn = torch.polar(torch.ones(x.shape[1], 32), torch.arange(x.shape[1])[:, None] * rates)
    turned = torch.complex(x[..., :32], x[..., 32:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def _residual_blocks(state: StateDict, prefix: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    for number in range(_count(state, prefix)):
        block = f"{prefix}.{number}"
        y = _norm(state, f"{block}.ln_1", x, 1e-5)
        joint = [state[f"{block}.attn.in_proj_{kind}"] for kind in ("weight", "bias")]
        x = x + _linear(state, f"{block}.attn.out_proj", _attention(y, y, *joint, heads, mask))
        y = F.gelu(_linear(state, f"{block}.mlp.c_fc", _norm(state, f"{block}.ln_2", x, 1e-5)))
        x = x + _linear(state, f"{block}.mlp.c_proj", y)
    return x


def image_reward(state: StateDict, images: Tensor, tokens: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(batch,): ImageReward's `score` (ImageReward.py), with BLIP's vit.py and med.py."""
    eyes, mind = "blip.visual_encoder", "blip.text_encoder"
    patch = state[f"{eyes}.patch_embed.proj.weight"]
    x = F.conv2d(pixels(images), patch, state[f"{eyes}.patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).mT
    x = torch.cat([state[f"{eyes}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{eyes}.pos_embed"]
    for number in range(_count(state, f"{eyes}.blocks")):
        block = f"{eyes}.blocks.{number}"
        y = _norm(state, f"{block}.norm1", x, 1e-6)
        joint = [state[f"{block}.attn.qkv.{kind}"] for kind in ("weight", "bias")]
        x = x + _linear(state, f"{block}.attn.proj", _attention(y, y, *joint, heads, None))
        y = F.gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(state, f"{block}.mlp.fc2", y)
    seen = _norm(state, f"{eyes}.norm", x, 1e-6)

    words = F.embedding(tokens, state[f"{mind}.embeddings.word_embeddings.weight"])
    places = state[f"{mind}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = _norm(state, f"{mind}.embeddings.LayerNorm", words + places, 1e-12)
    hidden = torch.zeros(mask.shape).masked_fill(mask == 0, float("-inf"))[:, None, None]
    for number in range(_count(state, f"{mind}.encoder.layer")):
        layer = f"{mind}.encoder.layer.{number}"
        for kind, looked_at, bias in (("attention", y, hidden), ("crossattention", seen, None)):
            parts = [f"{layer}.{kind}.self.{part}" for part in ("query", "key", "value")]
            weights, biases = ([state[f"{part}.{w}"] for part in parts] for w in ("weight", "bias"))
            z = _linear(state, f"{layer}.{kind}.output.dense", _attention(y, looked_at, weights, biases, heads, bias))
            y = _norm(state, f"{layer}.{kind}.output.LayerNorm", y + z, 1e-12)
        z = F.gelu(_linear(state, f"{layer}.intermediate.dense", y))
        y = _norm(state, f"{layer}.output.LayerNorm", y + _linear(state, f"{layer}.output.dense", z), 1e-12)
    return (linear_head(state, "mlp.layers", y[:, 0]) - 0.16717362830052426) / 1.0333394966054072


def linear_head(state: StateDict, prefix: str, x: Tensor) -> Tensor:
    for number in (0, 2, 4, 6, 7):
        x = _linear(state, f"{prefix}.{number}", x)
    return x.squeeze(-1)


def _attention(
    x: Tensor,
    looked_at: Tensor,
    weights: Tensor | Sequence[Tensor],
    biases: Tensor | Sequence[Tensor],
    heads: int,
    mask: Tensor | None,
) -> Tensor:
    wq, wk, wv = weights.chunk(3) if isinstance(weights, Tensor) else weights
    bq, bk, bv = biases.chunk(3) if isinstance(biases, Tensor) else biases

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split(F.linear(x, wq, bq)), split(F.linear(looked_at, wk, bk)), split(F.linear(looked_at, wv, bv))
    weight = q @ k.mT / q.shape[-1] ** 0.5
    return ((weight if mask is None else weight + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _linear(state: StateDict, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: StateDict, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _count(state: StateDict, prefix: str) -> int:
    return 1 + max(int(key.removeprefix(f"{prefix}.").split(".")[0]) for key in state if key.startswith(f"{prefix}."))
