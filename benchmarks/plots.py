"""The benchmark's numbers as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plots.figure import THEMES, new_figure, saved

from .measure import Result
from .memory import Memory
from .methods import PLAIN
from .report import MIB
from .timing import ratio

_PIXELS_PER_BAR = 31


def draw(results: Sequence[Result], memory: Mapping[str, Memory]) -> bytes:
    """PNG: a step's time relative to plain CFG, a panel per cell, and the weights' memory.

    Args:
        results: of the cells.
        memory: method → memory; one of the two may be empty.
    """
    panels = [*results, *([memory] if memory else [])]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    bars = max(len(result.timings.wall) for result in results) if results else len(memory)
    figure = new_figure(825 * columns, (110 + _PIXELS_PER_BAR * bars) * lines, THEMES["light"])
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, axis in zip(panels, axes, strict=False):
        if isinstance(panel, Result):
            _draw_cell(panel, axis)
        else:
            _draw_memory(panel, axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return saved(figure, "png")


def _draw_cell(result: Result, axis: Any) -> None:
    names = list(result.timings.wall)
    spreads = [ratio(result.timings.wall, name, PLAIN) for name in names]
    errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    axis.barh(names, [s.median for s in spreads], xerr=errors, color=[_colour(name) for name in names])
    axis.invert_yaxis()
    axis.set_title(str(result.cell), fontsize=10)
    axis.set_xlabel(f"time of a step ÷ {PLAIN} (lines: quartiles)")


def _draw_memory(memory: Mapping[str, Memory], axis: Any) -> None:
    axis.barh(list(memory), [m.weights / MIB for m in memory.values()], color=[_colour(name) for name in memory])
    axis.invert_yaxis()
    axis.set_title("weights held while sampling", fontsize=10)
    axis.set_xlabel("MiB")


def _colour(name: str) -> str:
    return "tab:blue" if name.startswith("RLG") else "tab:gray"
