"""ImageReward on the BLIP of transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import host, preparation
from .linear_head import LinearHead
from .network_reward import NetworkReward
from .weights import StateDict, fill, from_transformers, read, split

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer

_TOKENS = 35
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the training set (the published code's constants)."""
_VOCABULARY = "vocab.txt"

_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")
# BLIP's names and transformers', for the vision tower; those of the text tower are the same.
_PARTS = {
    r"^cls_token$": "embeddings.class_embedding",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^blocks\.": "encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.qkv\.": ".self_attn.qkv.",
    r"\.attn\.proj\.": ".self_attn.projection.",
    r"^norm\.": "post_layernorm.",
}


class ImageReward(NetworkReward):
    """ImageReward v1: BLIP ViT-L with a head, trained on rankings by people (arXiv 2304.05977, section 3.3)."""

    name = "imagereward"
    unit = "standard deviations"
    range = (-math.inf, math.inf)
    source = "ImageReward, arXiv 2304.05977"

    def __init__(self, path: Path) -> None:
        """Args:
            path: ImageReward.pt, or its weights as safetensors.

        Raises:
            ValueError: it cannot be read or holds another model.
            FileNotFoundError: the vocabulary is not there.
        """
        self._tokenizer = _tokenizer(vocabulary_of(path))
        self._model = _Model(read(path), path)
        super().__init__(host.Managed(self._model), preparation.crop(self._model.side, "torchvision"))

    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """What exceeds 35 tokens of a prompt is cut off, as in the published code."""
        encoded = self._tokenizer.encode_batch(list(prompts))
        tokens = torch.tensor([text.ids for text in encoded], device=pixels.device)
        mask = torch.tensor([text.attention_mask for text in encoded], device=pixels.device)
        return (self._model(pixels, tokens, mask) - _MEAN) / _STD


class _Model(nn.Module):
    def __init__(self, state: StateDict, path: Path) -> None:
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        used = {key: value for key, value in state.items() if not _UNUSED.search(key)}
        vision, text, head = split(used, (_VISION, _TEXT, _HEAD), path)
        vision = {_renamed(key): value for key, value in vision.items()}
        try:
            vision_config, text_config = _configs(vision, text)
        except (KeyError, ValueError, AttributeError, IndexError):
            raise ValueError(f"file: '{path.name}' holds another model's weights: it is no ImageReward.") from None
        self.side: int = vision_config.image_size
        self.vision = from_transformers(BlipVisionModel, path, vision_config, vision)
        self.text = from_transformers(BlipTextModel, path, text_config, text, add_pooling_layer=False)
        self.head = LinearHead(text_config.hidden_size)
        fill(self.head, head, path)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch,): the head on the first token of the text, which has looked at the image."""
        seen = self.vision(pixels).last_hidden_state
        read = self.text(
            tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return self.head.layers(read[:, 0]).squeeze(-1)


def _renamed(key: str) -> str:
    for old, new in _PARTS.items():
        key = re.sub(old, new, key)
    return key


def _configs(vision: StateDict, text: StateDict) -> tuple:
    """Of both towers, by the shapes of their weights; heads are 64 wide in every BLIP."""
    from transformers import BlipTextConfig, BlipVisionConfig

    patch = vision["embeddings.patch_embedding.weight"]
    words, positions = text["embeddings.word_embeddings.weight"], text["embeddings.position_embeddings.weight"]
    width = words.shape[1]
    return (
        BlipVisionConfig(
            hidden_size=patch.shape[0],
            intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_layers(vision, "encoder.layers."),
            num_attention_heads=patch.shape[0] // 64,
            patch_size=patch.shape[-1],
            image_size=patch.shape[-1] * round((vision["embeddings.position_embedding"].shape[1] - 1) ** 0.5),
            layer_norm_eps=1e-6,  # BLIP's own vision tower; transformers' default is another
        ),
        BlipTextConfig(
            vocab_size=words.shape[0],
            max_position_embeddings=positions.shape[0],
            hidden_size=width,
            encoder_hidden_size=patch.shape[0],
            intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_layers(text, "encoder.layer."),
            num_attention_heads=width // 64,
        ),
    )


def _layers(state: StateDict, prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def vocabulary_of(path: Path) -> Path:
    """The file of BERT's vocabulary that lies beside the weights; ComfyUI does not bring it.

    Raises:
        FileNotFoundError: it does not.
    """
    vocabulary = path.with_name(_VOCABULARY)
    if not vocabulary.is_file():
        raise FileNotFoundError(
            f"file: '{_VOCABULARY}' for {ImageReward.name} is not in {path.parent}; download it from "
            f"google-bert/bert-base-uncased (Hugging Face), put it there, beside {path.name}, and run again."
        )
    return vocabulary


def _tokenizer(vocabulary: Path) -> BertWordPieceTokenizer:
    from tokenizers import BertWordPieceTokenizer

    try:
        tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"file: '{vocabulary}' is no vocabulary of BERT; download it again ({error}).") from error
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS)
    return tokenizer
