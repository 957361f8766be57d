"""Many pictures as one, with headers for rows and columns."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .labels import join, split

_BACKGROUND, _TEXT, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_LARGEST_SIDE = 8192
"""Pixels; larger grids are shrunk, since viewers and uploads give up on them."""
_SMALLEST_TEXT = 12
_HEADER_CHARACTERS = 20
"""Longest line of a row's header, but for longer words, such as the names of LoRAs."""
_WORD_CHARACTERS = 40
"""Longest word that is left whole."""
_ONE_ROW = 8
"""So many pictures without rows of their own stand side by side."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of the labels go.

    Attributes:
        columns: pictures per row.
        common: parts that all labels have.
        column_headers, row_headers: text per column and row.
        captions: text per picture, of the parts that are none of these.
    """

    columns: int
    common: str
    column_headers: list[str]
    row_headers: list[str]
    captions: list[str]

    @property
    def rows(self) -> int:
        return -(-len(self.captions) // self.columns)


def folded(header: str) -> str:
    """A row's header on several lines."""
    longest = max(map(len, header.split()), default=0)
    return textwrap.fill(header, min(max(longest, _HEADER_CHARACTERS), _WORD_CHARACTERS))


def layout(labels: Sequence[str], columns: int = 0) -> Layout:
    """Sort the parts of labels (separated by ", ") into headers and captions.

    Args:
        labels: one per picture, row by row.
        columns: pictures per row; 0 chooses a number at which rows and columns have headers, if there is one.
    """
    parts = [split(label) for label in labels]
    if len({len(p) for p in parts}) > 1:
        parts = [[label] for label in labels]
    if columns == 0:
        columns = _chosen_columns(parts)
    columns = min(columns, len(labels))
    common, of_column, of_row, rest = [], [], [], []
    for part in zip(*parts, strict=True):
        if len(set(part)) == 1 and len(part) > 1:
            common.append(part)
        elif _depends_on_column(part, columns):
            of_column.append(part)
        elif _depends_on_row(part, columns):
            of_row.append(part)
        else:
            rest.append(part)
    return Layout(
        columns,
        join(part[0] for part in common),
        [join(part[i] for part in of_column) for i in range(columns)],
        [join(part[i] for part in of_row) for i in range(0, len(labels), columns)],
        [join(part[i] for part in rest) for i in range(len(labels))],
    )


def labelled_grid(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    columns: int,
    title: str,
    font_for: Callable[[str], str | None] | None = None,
) -> Image.Image:
    """One picture of many, whose labels say where each belongs.

    Args:
        pictures: RGB; all of one size.
        labels: one per picture; parts separated by ", ".
        columns: pictures per row; 0 = by the labels.
        title: a line on top; may be empty.
        font_for: text → a font's file where Pillow's own one does not have its letters.

    Returns:
        An RGB picture with no side above 8192 pixels.

    Raises:
        ValueError: the numbers of pictures and labels differ, or the pictures' sizes do.
    """
    if len(pictures) != len(labels):
        raise ValueError(
            f"labels: there are {len(labels)} of them for {len(pictures)} images; connect images and labels of one "
            "sweep, without nodes between them that add or drop pictures."
        )
    if len({picture.size for picture in pictures}) > 1:
        raise ValueError("images: they have different sizes; make them equal before (Upscale Image).")
    font_file = font_for and font_for("".join([title, *labels]))
    return grid(pictures, layout(labels, columns), title, font_file)


def grid(pictures: Sequence[Image.Image], plan: Layout, title: str = "", font_file: str | None = None) -> Image.Image:
    """Equally large RGB pictures, row by row, with the headers and captions of a layout; shrunk as `labelled_grid`.

    Args:
        font_file: None = Pillow's own font.
    """
    width, height = pictures[0].size
    shrink = min(1.0, _LARGEST_SIDE / (1.2 * max(plan.columns * width, plan.rows * height)))
    width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
    gap = max(4, width // 64)
    size = min(max(_SMALLEST_TEXT, width // 14), 64)
    # Pictures smaller than their headers stand apart, so that no text runs into the next.
    of_cells = [*plan.column_headers, *plan.captions]
    cell = max(width, _longest(of_cells, _font(font_file, _SMALLEST_TEXT)))
    font = _fitting(size, of_cells, cell, font_file)
    row_headers = [folded(header) for header in plan.row_headers]
    row_font = _fitting(size, row_headers, max(width // 2, 60), font_file)
    title_font = _fitting(round(size * 1.3), [title], 3 * cell, font_file)
    common_font = _fitting(size, [plan.common], 3 * cell, font_file)

    def line(texts: Sequence[str], of: ImageFont.FreeTypeFont) -> int:
        return round(of.size * 1.5) if any(texts) else 0

    left = gap + (_longest(row_headers, row_font) + 2 * gap if any(row_headers) else 0)
    title_height = line([title], title_font)
    top = gap + title_height + line([plan.common], common_font) + line(plan.column_headers, font)
    caption = line(plan.captions, font)
    pitch = cell + gap, height + caption + gap
    text_width = max(_longest([title], title_font), _longest([plan.common], common_font)) + 2 * gap
    canvas = Image.new(
        "RGB", (max(left + plan.columns * pitch[0], text_width), top + plan.rows * pitch[1]), _BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, gap), title, _TEXT, title_font)
    draw.text((gap, gap + title_height), plan.common, _FAINT, common_font)
    for column, header in enumerate(plan.column_headers):
        draw.text((left + column * pitch[0] + cell / 2, top - 2), header, _TEXT, font, anchor="md")
    for row, header in enumerate(row_headers):
        draw.text((gap, top + row * pitch[1] + height / 2), header, _TEXT, row_font, anchor="lm")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, plan.columns)
        x, y = left + column * pitch[0], top + row * pitch[1]
        shown = picture if shrink == 1.0 else picture.resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(shown, (x + (cell - width) // 2, y))
        draw.text((x + cell / 2, y + height + caption / 2), plan.captions[index], _TEXT, font, anchor="mm")
    return canvas


def _fitting(size: int, texts: Sequence[str], width: int, file: str | None) -> ImageFont.FreeTypeFont:
    """The largest font up to `size` pixels in which every text fits into `width`, but never an unreadable one."""
    while size > _SMALLEST_TEXT and _longest(texts, _font(file, size)) > width:
        size -= 1
    return _font(file, size)


def _longest(texts: Sequence[str], font: ImageFont.FreeTypeFont) -> int:
    lines = [line for text in texts for line in text.splitlines()]
    return math.ceil(max(map(font.getlength, lines), default=0.0))


@functools.cache
def _font(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


def _chosen_columns(parts: Sequence[Sequence[str]]) -> int:
    count = len(parts)
    for columns in sorted((c for c in range(2, count) if count % c == 0), key=lambda c: abs(c - count // c)):
        whole = all(
            len(set(part)) == 1 or _depends_on_column(part, columns) or _depends_on_row(part, columns)
            for part in zip(*parts, strict=True)
        )
        if whole:
            return columns
    return count if count <= _ONE_ROW else math.ceil(math.sqrt(count))


def _depends_on_column(part: Sequence[str], columns: int) -> bool:
    return all(text == part[i % columns] for i, text in enumerate(part))


def _depends_on_row(part: Sequence[str], columns: int) -> bool:
    return all(text == part[i - i % columns] for i, text in enumerate(part))
