"""Pictures side by side, each with a title above it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = "white", "black"


def side_by_side(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """One row of equally large RGB pictures, left to right, on white; a title is centred above each."""
    width, height = pictures[0].size
    gap = max(4, width // 32)
    font = ImageFont.load_default(max(12, width // 16))
    header = 2 * gap + sum(font.getmetrics())
    row = Image.new("RGB", (gap + (width + gap) * len(pictures), header + height + gap), PAPER)
    draw = ImageDraw.Draw(row)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = gap + column * (width + gap)
        draw.text((left + width / 2, header / 2), title, fill=INK, font=font, anchor="mm")
        row.paste(picture, (left, header))
    return row
