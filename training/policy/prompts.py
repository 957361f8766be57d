"""The prompts that are trained on, encoded once: while training goes on the text encoders need no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..streams import stream
from .gradients import training_mode

if TYPE_CHECKING:
    from comfy.sd import CLIP

Conditioning = list[Any]
"""The host's CONDITIONING."""


@dataclass(frozen=True)
class Prompts:
    """What is asked for.

    Attributes:
        texts: the prompts, for the reward.
        positive: one CONDITIONING for each.
        negative: the CONDITIONING of CFG's other side, the same for all.
    """

    texts: tuple[str, ...]
    positive: tuple[Conditioning, ...]
    negative: Conditioning

    @classmethod
    def encode(cls, clip: CLIP, texts: Sequence[str], negative: str = "") -> Prompts:
        """Encode with a CLIP of the host.

        Raises:
            ValueError: there is no prompt, or an empty one.
        """
        texts = tuple(text.strip() for text in texts)
        if not texts:
            raise ValueError("prompts: there are none to train on; connect RLG Load Prompts, or write one a line.")
        if "" in texts:
            raise ValueError(f"prompts: number {texts.index('') + 1} of {len(texts)} is empty; take it out.")
        with training_mode():
            known = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in {*texts, negative}}
        return cls(texts, tuple(known[text] for text in texts), known[negative])

    @property
    def digest(self) -> str:
        """A hash of the texts in their order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()

    def chosen(self, seed: int, iteration: int, count: int) -> list[int]:
        """The prompts of an iteration, by number: all in a random order, then all in another one, and so on."""
        size = len(self.texts)
        places = range(iteration * count, (iteration + 1) * count)
        laps = {place // size for place in places}
        orders = {lap: torch.randperm(size, generator=stream(seed, "prompts", lap)).tolist() for lap in laps}
        return [orders[place // size][place % size] for place in places]
