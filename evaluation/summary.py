"""What an evaluation found, as a table for people and one for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.plan import Cell, Plan
from rewards.curve import written
from rewards.intervals import Estimate, bootstraps, wins

BASELINES = (0.0, 1.0)
"""Scales to compare with: the base and the tuned model."""

_ABOVE = dict(zip(BASELINES, ("above_base", "above_tuned"), strict=True))
"""Baseline → name of a column."""


@dataclass(frozen=True)
class Point:
    """What one cell of one pair is worth in one reward.

    Attributes:
        reward: its name, "" where the plan has none.
        mean: of the scores, None where the plan has no reward.
        above: by baseline, mean of what the scores are above its scores with the same prompt and seed; without those
            that are not among the plan's scales.
        win_rates: by baseline, over prompts and seeds; the same.
        diversity: mean distance of two pictures of a prompt; None with one seed.
    """

    pair: str
    cell: Cell
    reward: str
    mean: Estimate | None
    above: dict[float, Estimate]
    win_rates: dict[float, Estimate]
    diversity: Estimate | None


def points(plan: Plan, pair: str, values: np.ndarray) -> list[Point]:
    """Those of a pair, reward by reward, with 95 % bootstrap intervals over prompts.

    Args:
        values: (cells, prompts, seeds, rewards + 1), as Store.collect gives them.
    """
    scales = [cell.scale for cell in plan.cells]
    baselines = {scale: scales.index(scale) for scale in BASELINES if scale in scales}
    quantities: dict[tuple[str, int, str], np.ndarray] = {}
    rewards = [reward.name for reward in plan.rewards]
    for cell in range(len(plan.cells)):
        for number, name in enumerate(rewards):
            scores = values[..., number]
            quantities[name, cell, "mean"] = scores[cell].mean(axis=1)
            for scale, baseline in baselines.items():
                quantities[name, cell, f"above {scale}"] = (scores[cell] - scores[baseline]).mean(axis=1)
                if baseline != cell:
                    quantities[name, cell, f"wins {scale}"] = wins(scores[cell], scores[baseline]).mean(axis=1)
        if len(plan.seeds) > 1:
            quantities["", cell, "diversity"] = values[cell, :, 0, -1]
    found: dict[tuple[str, int, str], Estimate] = {}
    if quantities:
        found = dict(zip(quantities, bootstraps(np.stack(list(quantities.values()), axis=1)), strict=True))

    def against(name: str, cell: int, what: str) -> dict[float, Estimate]:
        keys = {scale: (name, cell, f"{what} {scale}") for scale in baselines}
        return {scale: found[key] for scale, key in keys.items() if key in found}

    return [
        Point(
            pair=pair,
            cell=cell,
            reward=name,
            mean=found.get((name, index, "mean")),
            above=against(name, index, "above"),
            win_rates=against(name, index, "wins"),
            diversity=found.get(("", index, "diversity")),
        )
        for name in rewards or [""]
        for index, cell in enumerate(plan.cells)
    ]


def to_csv(found: Sequence[Point]) -> str:
    """A line for each point; of each quantity mean and the ends of its interval."""
    names = ["mean", *(f"win_rate_vs_{scale:g}" for scale in BASELINES), "diversity", *_ABOVE.values()]
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    table.writerow(["pair", "reward", "scale", "schedule", *ends])
    for point in found:
        of_wins = [point.win_rates.get(scale) for scale in BASELINES]
        of_point = [point.mean, *of_wins, point.diversity, *map(point.above.get, _ABOVE)]
        numbers = [text for value in of_point for text in written(value)]
        scale = "" if point.cell.scale is None else f"{point.cell.scale:g}"
        table.writerow([point.pair, point.reward, scale, point.cell.schedule_text, *numbers])
    return file.getvalue()


def to_markdown(plan: Plan, prompts: int, found: Sequence[Point]) -> str:
    """A table for each pair and reward."""
    pictures = f"{prompts} prompts × {len(plan.seeds)} seeds"
    lines = [f"{pictures} at every scale; mean [95 % interval, bootstrap over prompts].", ""]
    shown = [scale for scale in BASELINES if scale in [cell.scale for cell in plan.cells]]
    for pair, reward in dict.fromkeys((point.pair, point.reward) for point in found):
        compared = [f"{what} s = {scale:g}" for what in ("above", "wins against") for scale in shown if reward]
        rows = [["", *([reward] if reward else []), *compared, "diversity"]]
        for point in (p for p in found if (p.pair, p.reward) == (pair, reward)):
            cells = [_text(point.mean)] if reward else []
            cells += [_text(of.get(scale)) for of in (point.above, point.win_rates) for scale in shown if reward]
            rows.append([str(point.cell), *cells, _text(point.diversity)])
        lines += [f"**{pair}**", "", aligned(rows), ""]
    return "\n".join(lines)


def _text(value: Estimate | None) -> str:
    if value is None or value.low is None:
        return "" if value is None else f"{value.mean:.4g}"
    return f"{value.mean:.4g} [{value.low:.4g}, {value.high:.4g}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a console: names on the left, numbers to the right; the first row is its
    header."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
