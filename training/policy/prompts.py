"""The prompts that are trained on, encoded once: while training goes on the text encoders need no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..streams import stream
from ..weights_digest import weights_digest
from .gradients import training_mode
from .room import check_room

if TYPE_CHECKING:
    from comfy.sd import CLIP

Conditioning = list[Any]
"""The host's CONDITIONING."""


@dataclass(frozen=True)
class Prompts:
    """What is asked for.

    Attributes:
        texts: the prompts, for the reward.
        positive: the number of a prompt → its CONDITIONING; the first one's, and those of all that are asked for.
        negative: the CONDITIONING of CFG's other side, the same for all.
        negative_text: its prompt.
        encoder: a hash of the text encoders.
    """

    texts: tuple[str, ...]
    positive: Mapping[int, Conditioning]
    negative: Conditioning
    negative_text: str = ""
    encoder: str = ""

    @classmethod
    def encode(
        cls, clip: CLIP, texts: Sequence[str], negative: str = "", numbers: Iterable[int] | None = None
    ) -> Prompts:
        """Encode with a CLIP of the host.

        Args:
            numbers: of those that will be asked for; by default all.

        Raises:
            ValueError: there is no prompt, or an empty one, or there are more than main memory has room for.
        """
        texts = tuple(text.strip() for text in texts)
        if not texts:
            raise ValueError("prompts: there are none to train on; connect RLG Load Prompts, or write one a line.")
        if "" in texts:
            raise ValueError(f"prompts: number {texts.index('') + 1} of {len(texts)} is empty; take it out.")
        asked = sorted({0, *(range(len(texts)) if numbers is None else numbers)})
        with training_mode():
            known = {negative: _encoded(clip, negative)}
            wanted = {texts[number] for number in asked} - known.keys()
            _check_room(len(wanted), known[negative])
            known |= {text: _encoded(clip, text) for text in wanted}
        encoder = f"{weights_digest(clip.patcher)} {clip.layer_idx or ''}".strip()  # the layer of CLIP Set Last Layer
        return cls(texts, {number: known[texts[number]] for number in asked}, known[negative], negative, encoder)

    @property
    def digest(self) -> dict[str, str]:
        """What makes other prompts of them, by the names of a user's inputs: a hash of the texts in their order, …"""
        texts = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()
        return {"prompts": texts, "negative": self.negative_text, "clip": self.encoder}

    def chosen(self, seed: int, iteration: int, count: int) -> list[int]:
        """The prompts of an iteration, by number; see `numbers_in`."""
        return numbers_in(range(iteration * count, (iteration + 1) * count), len(self.texts), seed)


def numbers_in(places: Sequence[int], size: int, seed: int) -> list[int]:
    """Which of `size` prompts are at some places of a run: all in a random order, then all in another, and so on."""
    laps = {place // size for place in places}
    orders = {lap: torch.randperm(size, generator=stream(seed, "prompts", lap)).tolist() for lap in laps}
    return [orders[place // size][place % size] for place in places]


def _encoded(clip: CLIP, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _check_room(count: int, one: Conditioning) -> None:
    """Raises ValueError where so many prompts like `one` do not fit."""
    tensors = (value for tokens, more in one for value in (tokens, *more.values()) if isinstance(value, torch.Tensor))
    size = sum(tensor.nbytes for tensor in tensors)
    check_room(f"prompts: {count} different ones", count, size, when=" once they are encoded")
