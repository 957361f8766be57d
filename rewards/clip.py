"""CLIP as transformers builds it, from a Hugging Face folder or a file of open_clip."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import host
from .pixels import cropped
from .weights import StateDict, from_transformers, read

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPTokenizer

_TOKENS = 77
_BEGIN, _END = 49406, 49407


class Clip:
    """Unit vectors of images and texts, from one model."""

    def __init__(self, path: Path) -> None:
        """Args:
            path: a Hugging Face folder, or a file with the weights of a ViT-H/14 (or of anything with its activation).

        Raises:
            ValueError: it cannot be read or is not a CLIP.
        """
        from transformers import CLIPModel

        if path.is_dir():
            self._model = from_transformers(CLIPModel, path)
        else:
            state = from_open_clip(read(path))
            self._model = from_transformers(CLIPModel, path, config_of(state, path), state)
        self.side: int = self._model.config.vision_config.image_size
        self.width: int = self._model.config.projection_dim
        self.managed = host.Managed(self._model)
        self.logit_scale: float = self._model.logit_scale.exp().item()

    @torch.inference_mode()
    def images(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, width) float32 on the CPU, each of length 1."""
        found = [torch.zeros(0, self.width)]
        for part in self.managed.batches(len(images)):
            pixels = cropped(images[part], self.side, "transformers")
            found.append(self.of_pixels(pixels.to(self.managed.device)).cpu())
        return torch.cat(found)

    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, width) float32, each of length 1, of prepared pixels on the device where the model is."""
        seen = self._model.vision_model(pixels).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(seen), dim=-1)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(batch, width) float32 on the device where the model is, each of length 1. See `tokens`."""
        different = list(dict.fromkeys(texts))
        read = self._model.text_model(tokens(different).to(self.managed.device)).pooler_output
        vectors = torch.nn.functional.normalize(self._model.text_projection(read), dim=-1)
        return vectors[[different.index(text) for text in texts]]

    def cosines(self, pixels: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """(batch,) float32 on the device where the model is: of each prepared image with its text."""
        return (self.of_pixels(pixels) * self.of_texts(texts)).sum(-1)


def tokens(texts: Sequence[str]) -> torch.Tensor:
    """(batch, 77) int64. What exceeds 77 tokens is cut off, as CLIP does.

    All are of one length, so that what a model says of one text does not depend on the others.
    """
    return _tokenizer()(
        list(texts), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
    ).input_ids


@functools.cache
def _tokenizer() -> CLIPTokenizer:
    import transformers

    # The published scores are of the fast one. In transformers 5 it has the plain name; before, the plain one reads
    # Chinese and typographic quotes otherwise, and again otherwise where ftfy is installed.
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    return kind.from_pretrained(host.clip_vocabulary(), local_files_only=True)


def from_open_clip(state: StateDict) -> StateDict:
    """Weights under transformers' names; those that have them already are left alone."""
    if "visual.conv1.weight" not in state:
        return state
    renamed = host.clip_in_transformers_names(dict(state))
    renamed.pop("attn_mask", None)  # a constant
    return renamed


def config_of(state: StateDict, path: Path) -> CLIPConfig:
    """What the shapes say; the activation is GELU, as in all of LAION's ViT-H and bigG.

    Raises:
        ValueError: they are not those of a CLIP.
    """
    from transformers import CLIPConfig

    try:
        patches = state["vision_model.embeddings.patch_embedding.weight"]
        positions = state["vision_model.embeddings.position_embedding.weight"]
        words = state["text_model.embeddings.token_embedding.weight"]
        projection = state["visual_projection.weight"].shape[0]
        towers = {f"{name}_config": _tower(state, f"{name}_model.") for name in ("vision", "text")}
    except (KeyError, StopIteration):
        raise ValueError(f"file: '{path.name}' holds another model's weights: it is no CLIP.") from None
    towers["vision_config"] |= {
        "patch_size": patches.shape[-1],
        "image_size": patches.shape[-1] * round((positions.shape[0] - 1) ** 0.5),
        "projection_dim": projection,
    }
    towers["text_config"] |= {
        "vocab_size": words.shape[0],
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "bos_token_id": _BEGIN,
        "eos_token_id": _END,
        "projection_dim": projection,
    }
    return CLIPConfig(**towers, projection_dim=projection)


def _tower(state: StateDict, prefix: str) -> dict[str, int | str]:
    layers = {key.removeprefix(f"{prefix}encoder.layers.").split(".")[0] for key in state if f"{prefix}encoder." in key}
    intermediate, width = state[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 16 if width == 1280 else width // 64,  # ViT-H has heads of 80
        "hidden_act": "gelu",
    }
