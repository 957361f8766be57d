"""What the scale does to pictures of held-out prompts: reward and diversity, measured in a running ComfyUI."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.client import ComfyClient, Json
from demo.rewards import REWARDS, composition
from demo.scenes import SIDE, Prompt
from demo.trained_pair import CHECKPOINT, LORAS
from rewards.pixels import pixel_distances

STEPS, CFG = 12, 1.0


@dataclass(frozen=True)
class Setting:
    """How a picture is sampled: a constant scale, or the base first and then that scale (combined generation)."""

    scale: float
    switch: float | None = None
    """Progress from which the scale holds, 0 … 1."""

    def __str__(self) -> str:
        if self.switch is not None:
            return f"base, then s = {self.scale:g} from {self.switch:g}"
        return f"s = {self.scale:g}" + {0.0: " base", 1.0: " tuned"}.get(self.scale, "")


@dataclass(frozen=True)
class Measured:
    """Pictures of one LoRA and what they are worth, for P prompts × N seeds at each of S settings."""

    lora: str
    settings: tuple[Setting, ...]
    prompts: tuple[Prompt, ...]
    pictures: np.ndarray
    """(S, P, N, height, width, 3) uint8"""

    @property
    def rewards(self) -> np.ndarray:
        """(S, P, N): what the LoRA was trained for: the composition's score, or minus the kB of a JPEG."""
        return self._each(REWARDS[self.lora])

    @property
    def accuracy(self) -> np.ndarray:
        """(S, P, N): 1 where the picture shows all that its prompt says, else 0."""
        return self._each(lambda picture, prompt: composition(picture, prompt).correct)

    @property
    def diversity(self) -> np.ndarray:
        """(S, P)"""
        return np.array([[pixel_distances(of_prompt).mean() for of_prompt in of_scale] for of_scale in self.pictures])

    def _each(self, value: Callable[[np.ndarray, Prompt], float]) -> np.ndarray:
        return np.array(
            [
                [[value(picture, prompt) for picture in row] for prompt, row in zip(self.prompts, rows, strict=True)]
                for rows in self.pictures
            ],
            dtype=float,
        )


def measure(
    client: ComfyClient,
    lora: str,
    settings: Sequence[Setting],
    prompts: Sequence[Prompt],
    seeds: int,
    on_prompt: Callable[[int], None],
) -> Measured:
    """Sample every prompt with `seeds` noises, the same ones at every setting.

    `lora`: one of LORAS. `on_prompt` is called with the number of prompts done.
    """
    rows = []
    for index, prompt in enumerate(prompts):
        rows.append(np.stack(list(_sampled(client, lora, settings, prompt.text, seeds, seed=1000 + index))))
        on_prompt(index + 1)
    return Measured(lora, tuple(settings), tuple(prompts), np.stack(rows, axis=1))


def _sampled(
    client: ComfyClient, lora: str, settings: Sequence[Setting], text: str, seeds: int, seed: int
) -> Iterator[np.ndarray]:
    """(seeds, height, width, 3) uint8 for each setting."""
    pictures = client.outputs(sweep_prompt(lora, settings, text, seeds, seed))
    for column in range(len(settings)):
        yield np.stack([np.array(Image.open(io.BytesIO(png)).convert("RGB")) for png in pictures[f"save{column}"]])


def sweep_prompt(lora: str, settings: Sequence[Setting], text: str, seeds: int, seed: int) -> Json:
    """An API prompt: the loader, the text and the noise once, then a sampler for each setting; pictures in `save0` …"""
    graph: Json = {
        "pair": _node("RLGLoadModels", ckpt_name=CHECKPOINT, lora_name=LORAS[lora], lora_strength=1.0),
        "positive": _node("CLIPTextEncode", clip=["pair", 2], text=text),
        "negative": _node("CLIPTextEncode", clip=["pair", 2], text=""),
        "latent": _node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=seeds),
    }
    for column, setting in enumerate(settings):
        graph[f"sample{column}"] = _node(
            "RLGKSampler", base=["pair", 0], tuned=["pair", 1], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=seed, steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal",
            denoise=1.0, scale=setting.scale,
        )  # fmt: skip
        if setting.switch is not None:
            graph[f"schedule{column}"] = _node(
                "RLGCombinedGeneration", switch_percent=setting.switch, scale=setting.scale
            )
            graph[f"sample{column}"]["inputs"]["schedule"] = [f"schedule{column}", 0]
        graph[f"decode{column}"] = _node("VAEDecode", samples=[f"sample{column}", 0], vae=["pair", 3])
        graph[f"save{column}"] = _node("PreviewImage", images=[f"decode{column}", 0])
    return graph


def _node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}
