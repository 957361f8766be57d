"""Rewards that are a CLIP's opinion on how well image and prompt match: as trained, or tuned on human choices."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from . import preparation
from .clip import Clip
from .network_reward import NetworkReward


class PickScore(NetworkReward):
    """PickScore v1: CLIP ViT-H/14 tuned on Pick-a-Pic's choices (arXiv 2305.01569, eq. 1, before the softmax)."""

    name = "pickscore"
    unit = "logit"
    range = (-100.0, 100.0)
    source = "Pick-a-Pic, arXiv 2305.01569"

    def __init__(self, path: Path) -> None:
        self._clip = Clip(path)
        super().__init__(self._clip.managed, preparation.crop(self._clip.side, "transformers"))

    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self._clip.logit_scale * self._clip.cosines(pixels, prompts)


class ClipScore(NetworkReward):
    """CLIP score: cosine of image and prompt (arXiv 2104.08718, section 3), times 100 as torchmetrics gives it.

    Unlike there, negative values are kept.
    """

    name = "clip_score"
    unit = "100 cos"
    range = (-100.0, 100.0)
    source = "CLIPScore, arXiv 2104.08718"

    def __init__(self, path: Path) -> None:
        self._clip = Clip(path)
        super().__init__(self._clip.managed, preparation.crop(self._clip.side, "transformers"))

    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return 100.0 * self._clip.cosines(pixels, prompts)


class Hps(NetworkReward):
    """Human Preference Score v2.1: CLIP ViT-H/14 tuned on HPD v2's choices (arXiv 2306.09341, section 4)."""

    name = "hps_v2.1"
    unit = "cos"
    range = (-1.0, 1.0)
    source = "HPS v2, arXiv 2306.09341"

    def __init__(self, path: Path) -> None:
        self._clip = Clip(path)
        super().__init__(self._clip.managed, preparation.pad(self._clip.side))

    def _rate(self, pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self._clip.cosines(pixels, [_as_open_clip_reads(prompt) for prompt in prompts])


def _as_open_clip_reads(prompt: str) -> str:
    """Entities and typographic quotes as open_clip's tokenizer resolves them; it leaves that to html and ftfy."""
    prompt = html.unescape(html.unescape(prompt))
    return re.sub("[\u201c-\u201f]", '"', re.sub("[\u02bc\u2018-\u201b]", "'", prompt))
