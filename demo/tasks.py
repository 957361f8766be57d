"""What the demo's LoRAs are tuned for: the prompts, and what a picture of one is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from demo.letters import Sign, signs
from demo.rewards import Judged, composition, compressibility
from demo.scenes import Prompt, prompts
from rewards.pixels import to_image
from rewards.text_rendering import TextRendering


@dataclass(frozen=True)
class Task:
    """What one LoRA is tuned for.

    Attributes:
        axis: the reward's name in a plot.
        prompts: (seed, count, held_out=…) → so many different ones.
        judge: of a picture (SIDE, SIDE, 3) uint8 and what it was asked to show.
    """

    axis: str
    prompts: Callable[..., list[Any]]
    judge: Callable[[np.ndarray, Any], Judged]


def spelled(picture: np.ndarray, sign: Sign) -> Judged:
    """Share of the letters that RapidOCR reads as they were asked for, see `rewards.text_rendering`."""
    reward = float(_reader().score(to_image(picture[None]), [sign.text]))
    return Judged(reward, reward == 1)


@cache
def _reader() -> TextRendering:
    return TextRendering()


def small(picture: np.ndarray, prompt: Prompt) -> Judged:
    """Minus the size as a JPEG in kB. What is right is the scene, which the reward does not look at."""
    return Judged(compressibility(picture), composition(picture, prompt).right)


TASKS = {
    "composition": Task("composition reward (share of the prompt that is right)", prompts, composition),
    "text": Task("text reward (share of the letters that are read right)", signs, spelled),
    "compressibility": Task("compressibility reward (minus kB as JPEG)", prompts, small),
}
"""Name of the LoRA → what it is tuned for."""
