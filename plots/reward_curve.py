"""What a scale does to reward and diversity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .figure import TEXT, THEMES, new_figure, on_one_line, style, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..rewards.curve import Curve, Point
    from ..rewards.intervals import Estimate
    from .figure import Theme

PANEL = 512, 420
"""Pixels."""
_LEGEND_LINE = 30
_MODELS = {"scale": {0.0: "base", 1.0: "tuned"}, "switch": {1.0: "base"}}
"""Axis → where on it the models alone are."""
_WIDE = 5.0
"""On a longer axis the names of base and tuned model would touch."""
_NO_NAME = "constant scale"
_MARKERS = "osD^v"
_ROOM = 0.05
"""Of an axis, between its end and the points."""
_Of = Callable[["Point"], "Estimate | None"]


def reward_curve(curve: Curve, theme: str, title: str, reward: str) -> Figure:
    """The gain on the base, reward against scale, diversity, and reward against diversity: as much of it as is known.

    Bars are 95 % intervals. An axis that shows a mean without one begins at 0. In the last panel the points of the
    Pareto front are ringed and connected.

    Args:
        curve: what to draw.
        theme: a key of THEMES.
        title: up to three lines on top; may be empty.
        reward: its name.
    """
    colours, points = THEMES[theme], curve.points
    panels: list[Callable[[Axes], None]] = []
    if any(point.above_base for point in points):
        # First, as it says whether there is a difference; the means' intervals are mostly of how prompts differ.
        title_of_gain = f"{reward} minus the base's (same prompt and noise)"
        panels.append(lambda axes: _against_scale(axes, curve, colours, lambda p: p.above_base, title_of_gain))
    title_of_mean = f"{reward} (mean, 95 % interval)"
    panels.append(lambda axes: _against_scale(axes, curve, colours, lambda p: p.reward, title_of_mean))
    if any(point.diversity for point in points):
        panels.append(lambda axes: _against_scale(axes, curve, colours, lambda p: p.diversity, "diversity"))
        panels.append(lambda axes: _trade_off(axes, curve, colours, reward))
    columns, rows = min(2, len(panels)), -(-len(panels) // 2)
    width, named = columns * PANEL[0], curve.series != [""]
    figure = new_figure(width, rows * PANEL[1] + _LEGEND_LINE * len(curve.series) * named, colours, title)
    places = [[2 * row, min(2 * row + 1, len(panels) - 1)][:columns] for row in range(rows)]  # the last may be wide
    for axes, draw in zip(figure.subplot_mosaic(places).values(), panels, strict=True):
        draw(axes)
    if named:
        shown = figure.axes[0].get_legend_handles_labels()
        legend = figure.legend(*shown, loc="outside lower left", fontsize=TEXT, frameon=False, labelcolor=colours.text)
        for text in legend.get_texts():
            text.set(text=on_one_line(text.get_text(), width - _LEGEND_LINE), parse_math=False)
    return figure


def _against_scale(axes: Axes, curve: Curve, theme: Theme, of: _Of, title: str) -> None:
    style(axes, theme, wrapped(title, PANEL[0]), curve.axis)
    for number, series in enumerate(curve.series):
        known = [(point.x, estimate) for point in curve.points if point.series == series and (estimate := of(point))]
        xs, estimates = [x for x, _ in known], [estimate for _, estimate in known]
        means, errors = [estimate.mean for estimate in estimates], _errors(estimates)
        axes.errorbar(xs, means, errors, label=series or _NO_NAME, capsize=4, **_look(theme, number), linewidth=2)
    drawn = [point for point in curve.points if of(point)]
    axes.margins(x=0.08)
    axes.set_ylim(_whole(axes.get_ylim(), [of(point) for point in drawn]))
    low, high = min(point.x for point in drawn), max(point.x for point in drawn)
    beside = {"base": "right", "tuned": "left"} if high - low > _WIDE else {}
    for x, name in _MODELS.get(curve.axis, {}).items():
        if low <= x <= high and (name == "base" or curve.has_constant):
            axes.axvline(x, color=theme.faint, linestyle=":", zorder=1)
            axes.annotate(
                name, (x, 1), (0, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                ha=beside.get(name, "center"), color=theme.faint, fontsize=TEXT,
            )  # fmt: skip


def _trade_off(axes: Axes, curve: Curve, theme: Theme, reward: str) -> None:
    title = f"{reward} against diversity (ringed: Pareto front)"
    style(axes, theme, wrapped(title, PANEL[0]), f"diversity (numbers: {curve.axis})")
    front = sorted((point.diversity.mean, point.reward.mean) for point in curve.front)
    axes.plot(*zip(*front, strict=True), color=theme.faint, zorder=1)
    for number, series in enumerate(curve.series):
        look = _look(theme, number)
        for point in curve.points:
            if point.series == series and point.diversity:
                ring = theme.text if point in curve.front else look["color"]
                at = point.diversity.mean, point.reward.mean
                axes.plot(*at, color=look["color"], marker=look["marker"], markeredgecolor=ring, markeredgewidth=2)
                axes.annotate(f"{point.x:g}", at, (6, 4), textcoords="offset points", color=theme.text, fontsize=TEXT)
    # No bars here, or nothing could be read. What the other panels show an interval of may be cut off.
    known = [point for point in curve.points if point.diversity]
    axes.margins(0.1)
    axes.set_xlim(_whole(axes.get_xlim(), [point.diversity for point in known]))
    axes.set_ylim(_whole(axes.get_ylim(), [point.reward for point in known]))


def _look(theme: Theme, number: int) -> dict[str, str]:
    """Of a series: colour and marker, since one of the two may not be seen."""
    return {"color": theme.series[number % len(theme.series)], "marker": _MARKERS[number % len(_MARKERS)]}


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """(2, points): how far an interval goes below and above its mean; NaN where there is none."""
    known = [(e.mean, e.low, e.high) if e.low is not None else (math.nan,) * 3 for e in estimates]
    return [[mean - low for mean, low, _ in known], [high - mean for mean, _, high in known]]


def _whole(limits: tuple[float, float], estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Limits of an axis, with 0 where a mean has no interval: a cut axis would make a difference of it."""
    if all(e.low is not None for e in estimates):
        return limits
    low, high = min(0.0, limits[0]), max(0.0, limits[1])
    room = _ROOM * (high - low)
    return low - room * (low < 0), high + room * (high > 0)
