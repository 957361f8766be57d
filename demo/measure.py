"""What the scale does to pictures of held-out prompts: reward and diversity, measured in a running ComfyUI."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.client import ComfyClient, Json
from demo.graphs import ksampler, node, pair, shown
from demo.rewards import REWARDS, composition
from demo.scenes import Prompt
from rewards.pixels import pixel_distances


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
    graph = pair(text, seeds, lora)
    for column, setting in enumerate(settings):
        inputs = ksampler(seed, scale=setting.scale)
        if setting.switch is not None:
            graph[f"schedule{column}"] = node(
                "RLGCombinedGeneration", switch_percent=setting.switch, scale=setting.scale
            )
            inputs["schedule"] = [f"schedule{column}", 0]
        graph[f"sample{column}"] = node("RLGKSampler", **inputs)
        graph |= shown(column)
    return graph
