"""What all plots have in common: a figure, its colours, and the picture that it becomes."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from .fonts import families, is_far_eastern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT = 12.0
"""Points, at 100 pixels an inch: 17 pixels, and still 8 where a figure 1024 pixels wide is shown at half its size."""
_DPI = 100
_TITLE_LINES = 3


@dataclass(frozen=True)
class Theme:
    """Colours of a plot."""

    background: str
    text: str
    faint: str
    grid: str
    series: tuple[str, ...]
    """Of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers tell apart as well."""


THEMES = {
    "light": Theme("#ffffff", "#1a1a1a", "#6e6e6e", "#dddddd", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")),
    "dark": Theme("#202024", "#ebebf0", "#a0a0a8", "#46464c", ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442")),
}


def check_available() -> None:
    """For whoever draws at the end of long work, and must know before.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "plots need the Python package matplotlib, which is not installed; install it in ComfyUI's environment: "
            "pip install matplotlib."
        ) from error


def new_figure(width: int, height: int, theme: Theme, title: str = "") -> Figure:
    """An empty figure of `width` × `height` pixels, with a title of up to three lines.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_available()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / _DPI, height / _DPI), _DPI, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(wrapped(title, width), color=theme.text, fontsize=TEXT, parse_math=False)
    return figure


def style(axes: Axes, theme: Theme, title: str, x_name: str) -> None:
    """Give axes their colours, names and a grid."""
    axes.set_facecolor(theme.background)
    axes.grid(color=theme.grid)
    axes.set_axisbelow(True)
    axes.spines[:].set_color(theme.faint)
    axes.tick_params(colors=theme.faint, labelcolor=theme.text, labelsize=TEXT)
    # A title may hold any text of the user; between two $ it would be taken for a formula.
    axes.set_title(title, loc="left", pad=2 * TEXT, color=theme.text, fontsize=TEXT, parse_math=False)
    axes.set_xlabel(x_name, color=theme.text, fontsize=TEXT, parse_math=False)


def on_one_line(text: str, width: int) -> str:
    """A line that fits into `width` pixels; what it cannot hold is left out in the middle: names end unlike."""
    characters = _characters(width, text)
    if len(text) <= characters:
        return text
    kept = characters - 1
    return f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"


def wrapped(text: str, width: int) -> str:
    """Lines that fit into `width` pixels; what three of them cannot hold ends in an ellipsis."""
    characters = _characters(width, text)
    return "\n".join(textwrap.wrap(text, characters, max_lines=_TITLE_LINES, placeholder=" …"))


def _characters(width: int, text: str) -> int:
    """How many of the letters of a text fit into `width` pixels."""
    share = 1.24 if is_far_eastern(text) else 0.62
    return max(10, round(width / (share * TEXT * _DPI / 72)))


def picture(figure: Figure) -> Image.Image:
    """The figure as an RGB picture."""
    _lay_out(figure)
    figure.canvas.draw()
    return Image.fromarray(np.array(figure.canvas.buffer_rgba())[..., :3])


def saved(figure: Figure, kind: Literal["png", "pdf"]) -> bytes:
    """The figure as a file; equal figures give equal files."""
    _lay_out(figure)
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    return file.getvalue()


def _lay_out(figure: Figure) -> None:
    """Find the places of everything once: that takes longer than to draw, and would be done again for each file."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if is_far_eastern(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *families()])
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
