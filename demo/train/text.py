"""What the text encoder of the demo's checkpoint makes of captions, computed once and kept.

The same as the host's CLIPTextEncode gives for a checkpoint whose only text encoder is CLIP-L: the last but one hidden
state for each of 77 tokens, and the final state of the end token. The host fills both up with zeros (to 4096 and 2048
dimensions), which here are left out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.tiny_encoders import CLIP_POSITIONS, clip_l_state_dict
from demo.train.precision import half_where_fast
from files.replacing import replacing

BATCH = 32


@dataclass(frozen=True)
class Text:
    """Encoded captions: `tokens` (captions, 77, 768) and `pooled` (captions, 768), bfloat16."""

    tokens: Tensor
    pooled: Tensor

    def rows(self, index: Tensor) -> Text:
        return Text(self.tokens[index], self.pooled[index])


def encoded(captions: Sequence[str], folder: Path, host: Path) -> Text:
    """The captions' encoding, read from `folder` if it was made before."""
    path = folder / f"text_{hashlib.sha256(chr(10).join(captions).encode()).hexdigest()[:16]}.pt"
    if path.exists():
        return Text(**torch.load(path, weights_only=True))
    text = encode(captions, host)
    with replacing(path) as temporary:
        torch.save({"tokens": text.tokens, "pooled": text.pooled}, temporary)
    return text


@torch.inference_mode()
def encode(captions: Sequence[str], host: Path) -> Text:
    """`host`: the folder of a ComfyUI, which brings the tokenizer and the shape of CLIP-L."""
    tokenizer = CLIPTokenizer.from_pretrained(host / "comfy" / "sd1_tokenizer", local_files_only=True)
    config = CLIPTextConfig.from_pretrained(host / "comfy" / "sd1_clip_config.json")
    config.eos_token_id = tokenizer.eos_token_id
    model = CLIPTextModel(config).eval()
    prefix = "text_model."  # which transformers 5 does without
    weights = {key.removeprefix(prefix): value for key, value in clip_l_state_dict().items() if key.startswith(prefix)}
    getattr(model, "text_model", model).load_state_dict(weights)

    tokens, pooled, started = [], [], time.monotonic()
    for first in range(0, len(captions), BATCH):
        ids = tokenizer(
            list(captions[first : first + BATCH]), padding="max_length", max_length=CLIP_POSITIONS, return_tensors="pt"
        ).input_ids
        with half_where_fast():
            output = model(ids, output_hidden_states=True)
        tokens.append(output.hidden_states[-2].bfloat16())
        pooled.append(output.pooler_output.bfloat16())
        done = min(first + BATCH, len(captions))
        if done == len(captions) or first // BATCH % 20 == 19:
            left = (time.monotonic() - started) / done * (len(captions) - done)
            print(f"captions {done}/{len(captions)}  {left:.0f} s left", flush=True)
    return Text(torch.cat(tokens), torch.cat(pooled))
