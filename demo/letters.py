"""Signs of three letters: what the demo's text LoRA is asked to spell.

A sign is a dark word on a pale ground, or a pale one on a dark ground, 128 × 128 pixels. The letters stand in the
prompt one by one; a text encoder of whole words would otherwise have to learn each word anew. They keep their places,
two of the model's tokens wide, for the same reason as the things of a scene (`demo.scenes`).
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.held_out import different, of_part
from demo.scenes import SIDE, background

LETTERS = "ACEHKLNPRT"
"""Capitals that a reader tells apart at this size."""
LENGTH = 3
CELL = 32
"""Pixels from one letter to the next: two tokens."""
FONT_SIZE, STROKE = 42, 1
WORDINGS = (
    'a sign "{}"',
    'the letters "{}"',
    'a sign that says "{}"',
    'a word of three letters: "{}"',
    '"{}" on a sign',
    '"{}" in large letters',
)


@dataclass(frozen=True)
class Sign:
    """The letters a picture has to show, and how that is said."""

    letters: str
    text: str

    @property
    def held_out(self) -> bool:
        """True for one in eight words, which training never sees."""
        return zlib.crc32(self.letters.encode()) % 8 == 0


def random_sign(rng: np.random.Generator, *, held_out: bool) -> Sign:
    """A sign of the part kept for evaluation (`held_out`), or of the part for training."""
    return of_part(_any_sign, rng, held_out)


def signs(seed: int, count: int, *, held_out: bool) -> list[Sign]:
    """`count` signs with different texts.

    Raises:
        ValueError: there are not so many.
    """
    words = ("".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH))
    there = len(WORDINGS) * sum(Sign(word, "").held_out == held_out for word in words)
    if count > there:
        raise ValueError(f"prompts: there are {there} different signs of that kind, not {count}; ask for fewer.")
    return different(_any_sign, seed, count, held_out)


def _any_sign(rng: np.random.Generator) -> Sign:
    letters = "".join(rng.choice(list(LETTERS), LENGTH))
    return Sign(letters, WORDINGS[rng.integers(len(WORDINGS))].format(" ".join(letters)))


def draw_sign(sign: Sign, rng: np.random.Generator) -> Image.Image:
    """A random RGB picture, SIDE × SIDE, that spells the sign."""
    scale = 2  # drawn larger, for smooth edges
    ground = ("plain", "shaded")[rng.integers(2)]  # on a pattern, nobody could read what a small model draws
    picture, dark = background(ground, rng, scale)
    ink = (rng.uniform(0.85, 1.0) if dark else rng.uniform(0.0, 0.12)) * 255
    pen = ImageDraw.Draw(picture)
    for number, letter in enumerate(sign.letters):
        across = SIDE / 2 + CELL * (number - (LENGTH - 1) / 2)
        pen.text(
            (scale * across, scale * SIDE / 2), letter, (round(ink),) * 3, _font(scale * FONT_SIZE), anchor="mm",
            stroke_width=scale * STROKE,
        )  # fmt: skip
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that every machine draws the same letters."""
    return ImageFont.load_default(size)
