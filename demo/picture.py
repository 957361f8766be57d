"""Pictures in a grid with a title above each column and beside each row."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = "white", "black"
LABEL_CHARACTERS = 20
"""Longest line of a row's title."""


def grid(rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """Equally large RGB pictures on white: `columns` are centred above them, `labels` stand left of the rows."""
    width, height = rows[0][0].size
    gap = max(4, width // 32)
    font = ImageFont.load_default(max(12, width // 9))
    wrapped = [textwrap.fill(label, LABEL_CHARACTERS) for label in labels]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = max(round(pen.multiline_textbbox((0, 0), text, font=font)[2]) for text in wrapped) + 2 * gap
    header = 2 * gap + sum(font.getmetrics())
    size = (label_width + gap + (width + gap) * len(columns), header + (height + gap) * len(rows))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        middle = label_width + gap + (width + gap) * column + width / 2
        draw.text((middle, header / 2), title, fill=INK, font=font, anchor="mm")
    for row, (pictures, label) in enumerate(zip(rows, wrapped, strict=True)):
        top = header + (height + gap) * row
        draw.multiline_text((gap, top + height / 2), label, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (label_width + gap + (width + gap) * column, top))
    return sheet
