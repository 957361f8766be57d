"""A small picture of a schedule."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont

from ..image_tensor import to_tensor
from .schedule import Schedule

_WIDTH, _HEIGHT = 384, 224
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 40, _WIDTH - 16, _HEIGHT - 46
_BACKGROUND, _GRID, _TEXT, _LINE = (32, 32, 36), (70, 70, 76), (200, 200, 205), (255, 170, 60)


def plot(schedule: Schedule) -> torch.Tensor:
    """The scale over the run, steps from left to right.

    Returns:
        IMAGE of shape (1, height, width, 3), float32 from 0 to 1.
    """
    pixels = _RIGHT - _LEFT
    values = schedule.per_step(pixels)
    scales = [scale for _, scale in schedule.points]  # where it is going, also if no step falls on the end itself
    low, high = min(0.0, *scales), max(1.0, *scales)

    def row(scale: float) -> float:
        return _BOTTOM - (scale - low) / (high - low) * (_BOTTOM - _TOP)

    image = Image.new("RGB", (_WIDTH, _HEIGHT), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for scale in sorted({low, 0.0, 1.0, high}):
        draw.line([(_LEFT, row(scale)), (_RIGHT, row(scale))], _GRID)
        draw.text((_LEFT - 6, row(scale)), f"{scale:.3g}", _TEXT, font, anchor="rm")
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        column = _LEFT + tick * pixels
        draw.line([(column, _BOTTOM), (column, _BOTTOM + 4)], _GRID)
        draw.text((column, _BOTTOM + 6), f"{tick:g}", _TEXT, font, anchor="ma")
    draw.text(((_LEFT + _RIGHT) / 2, _HEIGHT - 6), "step / number of steps", _TEXT, font, anchor="mb")
    draw.line([(_LEFT + i, row(value)) for i, value in enumerate(values)], _LINE, width=2, joint="curve")
    draw.text((_LEFT, 10), _shortened(f"scale {schedule}", draw, font), _TEXT, font)
    return to_tensor(image)


def _shortened(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> str:
    if draw.textlength(text, font) <= _RIGHT - _LEFT:
        return text
    while draw.textlength(text + " ...", font) > _RIGHT - _LEFT:
        text = text[:-1]
    return text + " ..."
