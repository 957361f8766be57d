"""Is the text that the prompt asks for in the picture, spelled right?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from .pixels import pictures
from .protocol import WithoutGradient, check_inputs

_QUOTED = re.compile('["\u201c\u201d\u201e]([^"\u201c\u201d\u201e]+)["\u201c\u201d]')

_SETTINGS = {
    "Global.log_level": "error", "Global.use_cls": False, "Det.limit_type": "max", "Det.limit_side_len": 960,
}  # fmt: skip
"""PaddleOCR's own, with `use_angle_cls=False` as in flow_grpo/ocr.py of the authors."""


class TextRendering(WithoutGradient):
    """1 minus the edit distance of the text read from the picture to the one asked for, per letter of it, at least 0.

    As Flow-GRPO's OCR reward (arXiv 2505.05470, section 5.1): spaces and case do not count, and neither does what
    stands around the text that was asked for. It reads with PaddleOCR; here it is RapidOCR, with PaddleOCR's models and
    the settings that the authors use: pictures are not enlarged, and nothing is read upside down.
    """

    name = "text_rendering"
    unit = "share of letters"
    range = (0.0, 1.0)
    source = "Flow-GRPO, arXiv 2505.05470"

    def __init__(self) -> None:
        """Raises ValueError if the libraries for reading text are not there."""
        try:
            import onnxruntime  # noqa: F401 - RapidOCR asks for it only when it starts to read
            from rapidfuzz.distance import Levenshtein
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ValueError(
                f"reward: {self.name} needs Python packages that are not installed ({error.name}); install them in "
                "ComfyUI's environment: pip install rapidocr onnxruntime rapidfuzz."
            ) from error
        self._ocr = RapidOCR(params=_SETTINGS)
        self._distance = Levenshtein.distance

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`. The text asked for is what stands in double quotes in the prompt; the first counts.

        Raises:
            ValueError: also, a prompt has no text in double quotes.
        """
        check_inputs(images, prompts)
        asked = [_letters(_quoted(prompt)) for prompt in prompts]
        read = [_letters("".join(self._ocr(picture).txts or ())) for picture in pictures(images)]
        return torch.tensor([self._likeness(*pair) for pair in zip(read, asked, strict=True)], dtype=torch.float32)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `PromptReader`."""
        for prompt in prompts:
            _quoted(prompt)

    def _likeness(self, read: str, asked: str) -> float:
        distance = 0 if asked in read else self._distance(read, asked)
        return 1.0 - min(distance, len(asked)) / len(asked)


def _quoted(prompt: str) -> str:
    found = _QUOTED.search(prompt)
    if found is None or not _letters(found[1]):
        raise ValueError(
            f"prompts: text_rendering finds no text in double quotes in '{prompt[:80]}'; write it as: a sign \"OPEN\"."
        )
    return found[1]


def _letters(text: str) -> str:
    return "".join(text.split()).lower()
