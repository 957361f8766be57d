"""Parts of API prompts for the demo's pair: what every graph begins with, its samplers, what it ends with."""

from __future__ import annotations

from demo.client import Json
from demo.scenes import SIDE
from demo.trained_pair import CHECKPOINT, LORAS

STEPS, CFG = 12, 1.0


def node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}


def pair(text: str, batch: int, lora: str) -> dict[str, Json]:
    """The nodes that every graph begins with: the loader, the text and the noise. `lora`: one of LORAS."""
    return {
        "pair": node("RLGLoadModels", ckpt_name=CHECKPOINT, lora_name=LORAS[lora], lora_strength=1.0),
        "positive": node("CLIPTextEncode", clip=["pair", 2], text=text),
        "negative": node("CLIPTextEncode", clip=["pair", 2], text=""),
        "latent": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=batch),
    }


def ksampler(seed: int, cfg: float = CFG, **inputs: object) -> Json:
    """What the samplers for a pair ask for."""
    return {
        "base": ["pair", 0], "tuned": ["pair", 1], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": ["latent", 0], "seed": seed, "steps": STEPS, "cfg": cfg, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 1.0, **inputs,
    }  # fmt: skip


def shown(number: int) -> dict[str, Json]:
    """The nodes that a graph ends with: the pictures of `sample<number>` in `save<number>`."""
    return {
        f"decode{number}": node("VAEDecode", samples=[f"sample{number}", 0], vae=["pair", 3]),
        f"save{number}": node("PreviewImage", images=[f"decode{number}", 0]),
    }
