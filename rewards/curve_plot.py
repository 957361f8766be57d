"""A curve as a picture: drawn with Pillow, which every ComfyUI has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .curve import Curve, Point

_PANEL = 460, 400
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 64, 20, 56
"""Margins of a panel around its plot."""
_HEADER, _LEGEND_LINE = 44, 24
_FINE = 2
"""Drawn so many times as large, and shrunk: Pillow's lines have hard edges."""
_TICKS = 5
Pixels = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; `series` are told apart by colour-blind readers as well (Okabe and Ito)."""

    background: str
    grid: str
    text: str
    faint: str
    series: tuple[str, ...]


THEMES = {
    "light": Theme("#ffffff", "#dddddd", "#1a1a1a", "#6e6e6e", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00")),
    "dark": Theme("#202024", "#46464c", "#ebebf0", "#a0a0a8", ("#56b4e9", "#e69f00", "#2fc79a", "#f08cc4", "#f0e442")),
}


def plot(curve: Curve, theme: str, title: str, reward: str) -> Image.Image:
    """Reward against scale; where there is diversity, also that against scale and the two against each other.

    Args:
        curve: what to draw.
        theme: a key of THEMES.
        title: a line on top; may be empty.
        reward: its name, for the axes.

    Returns:
        An RGB picture. Vertical lines at the points are 95 % confidence intervals; the points of the Pareto front are
        ringed and connected.
    """
    both = any(point.diversity is not None for point in curve.points)
    names = [series for series in curve.series if series]
    width, height = (3 if both else 1) * _PANEL[0], _HEADER + _PANEL[1] + _LEGEND_LINE * bool(names)
    canvas = Image.new("RGB", (width * _FINE, height * _FINE), THEMES[theme].background)
    pen = _Pen(ImageDraw.Draw(canvas), THEMES[theme], curve.series)
    pen.text((_LEFT / 2, _HEADER / 2 + 6), _shortened(title, width - _LEFT), 20, anchor="lm")
    _reward_panel(_Panel(pen, 0, f"{reward} (mean, 95 % interval)", curve.axis, _x(curve), _rewards(curve)), curve)
    if both:
        diversities = [point.diversity for point in curve.points if point.diversity is not None]
        _diversity_panel(_Panel(pen, 1, "diversity", curve.axis, _x(curve), diversities), curve)
        means = [point.reward.mean for point in curve.points if point.diversity is not None]
        x_name = f"diversity (numbers: {curve.axis}; ringed: Pareto front)"
        _front_panel(_Panel(pen, 2, f"{reward} against diversity", x_name, diversities, means), curve)
    for number, name in enumerate(names):
        x, y = _LEFT + number * (width - _LEFT) / len(names), _HEADER + _PANEL[1] + _LEGEND_LINE / 2 - 4
        pen.line([(x, y), (x + 22, y)], pen.colour(name), 3)
        pen.text((x + 30, y), _shortened(name, (width - _LEFT) / len(names) - 36), 13, anchor="lm")
    return canvas.resize((width, height), Image.Resampling.BOX)


class _Pen:
    """Draws in pixels of the finished picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, theme: Theme, series: Sequence[str]) -> None:
        self._draw, self.theme = draw, theme
        self._colours = {name: theme.series[i % len(theme.series)] for i, name in enumerate(series)}

    def colour(self, series: str) -> str:
        return self._colours[series]

    def line(self, points: Sequence[Pixels], colour: str, width: float = 1.0) -> None:
        self._draw.line([_fine(p) for p in points], colour, width=round(width * _FINE), joint="curve")

    def dot(self, at: Pixels, radius: float, colour: str, ring: str | None = None) -> None:
        x, y = _fine(at)
        r = radius * _FINE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=ring, width=2 * _FINE if ring else 0)

    def text(self, at: Pixels, text: str, size: int, anchor: str, colour: str | None = None) -> None:
        font = ImageFont.load_default(size * _FINE)
        self._draw.text(_fine(at), text, colour or self.theme.text, font, anchor=anchor)


class _Panel:
    """One plot: its frame with ticks, and where values lie in it."""

    def __init__(
        self, pen: _Pen, column: int, title: str, x_name: str, xs: Sequence[float], ys: Sequence[float]
    ) -> None:
        self.pen = pen
        left, top = column * _PANEL[0], _HEADER
        self.box = left + _LEFT, top + _TOP, left + _PANEL[0] - _RIGHT, top + _PANEL[1] - _BOTTOM
        self._x, self._y = _range(xs), _range(ys)
        x0, y0, x1, y1 = self.box
        theme = pen.theme
        for value in ticks(*self._x):
            column_at = self.at(value, self._y[0])[0]
            pen.line([(column_at, y0), (column_at, y1)], theme.grid)
            pen.text((column_at, y1 + 8), f"{value:g}", 13, "ma", theme.faint)
        for value in ticks(*self._y):
            row_at = self.at(self._x[0], value)[1]
            pen.line([(x0, row_at), (x1, row_at)], theme.grid)
            pen.text((x0 - 8, row_at), f"{value:g}", 13, "rm", theme.faint)
        pen.line([(x0, y0), (x0, y1), (x1, y1)], theme.faint)
        pen.text(((x0 + x1) / 2, y1 + 32), x_name, 14, "ma")
        pen.text((x0, y0 - 14), _shortened(title, x1 - x0), 14, "lb")

    def at(self, x: float, y: float) -> Pixels:
        x0, y0, x1, y1 = self.box
        (low_x, high_x), (low_y, high_y) = self._x, self._y
        return x0 + (x - low_x) / (high_x - low_x) * (x1 - x0), y1 - (y - low_y) / (high_y - low_y) * (y1 - y0)


def _reward_panel(panel: _Panel, curve: Curve) -> None:
    for series, points in _by_series(curve):
        colour = panel.pen.colour(series)
        panel.pen.line([panel.at(p.x, p.reward.mean) for p in points], colour, 2.5)
        for point in points:
            if point.reward.low is not None and point.reward.high is not None:
                ends = [panel.at(point.x, value) for value in (point.reward.low, point.reward.high)]
                panel.pen.line(ends, colour, 1.5)
                for x, y in ends:
                    panel.pen.line([(x - 5, y), (x + 5, y)], colour, 1.5)
            panel.pen.dot(panel.at(point.x, point.reward.mean), 4, colour)


def _diversity_panel(panel: _Panel, curve: Curve) -> None:
    for series, points in _by_series(curve):
        known = [panel.at(p.x, p.diversity) for p in points if p.diversity is not None]
        panel.pen.line(known, panel.pen.colour(series), 2.5)
        for at in known:
            panel.pen.dot(at, 4, panel.pen.colour(series))


def _front_panel(panel: _Panel, curve: Curve) -> None:
    front = curve.front
    where = sorted({(p.diversity, p.reward.mean) for p in front if p.diversity is not None})
    panel.pen.line([panel.at(*values) for values in where], panel.pen.theme.faint, 1.5)
    for point in curve.points:
        if point.diversity is not None:
            at = panel.at(point.diversity, point.reward.mean)
            ring = panel.pen.theme.text if point in front else None
            panel.pen.dot(at, 6 if ring else 4, panel.pen.colour(point.series), ring)
            panel.pen.text((at[0] + 9, at[1] - 3), f"{point.x:g}", 13, "lb")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about five of them."""
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # `+ 0.0`: no minus before a zero.
    return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """With room at both ends, also where all values are equal."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    return low - room, high + room


def _by_series(curve: Curve) -> list[tuple[str, list[Point]]]:
    return [(series, [point for point in curve.points if point.series == series]) for series in curve.series]


def _x(curve: Curve) -> list[float]:
    return [point.x for point in curve.points]


def _rewards(curve: Curve) -> list[float]:
    of_points = [(point.reward.mean, point.reward.low, point.reward.high) for point in curve.points]
    return [value for values in of_points for value in values if value is not None]


def _fine(at: Pixels) -> Pixels:
    return at[0] * _FINE, at[1] * _FINE


def _shortened(text: str, width: float) -> str:
    font = ImageFont.load_default(15)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + " ...") > width:
        text = text[:-1]
    return text + " ..."
