"""Reward and diversity against the scale, as numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import Estimate, student

_BASE = {"scale": 0.0, "switch": 1.0}
"""Axis → where on it the base model alone is."""
_TUNED = {"scale": 1.0}
"""The same of the tuned model, where the scale does not change over the steps."""
_SCHEDULED = ("switch ", "power ")
"""How the parts of a series begin whose scale is one that a schedule ends with."""


@dataclass(frozen=True)
class Point:
    """What the pictures of one setting are worth.

    Attributes:
        series: what they have in common besides, such as "switch 0.5"; may be empty.
        x: their place along the axis.
        images: how many there are.
        reward: mean of their scores.
        diversity: mean of theirs; None where it was not measured.
        above_base: mean of what their scores are above those of the base model with the same prompt and noise; None
            where the base's are not among the series, or cannot be told apart.
        above_tuned: the same against the tuned model; None along a schedule too.
    """

    series: str
    x: float
    images: int
    reward: Estimate
    diversity: Estimate | None = None
    above_base: Estimate | None = None
    above_tuned: Estimate | None = None


@dataclass(frozen=True)
class Curve:
    """All points of an evaluation.

    Attributes:
        axis: what the points lie along: "scale", "switch", or another setting.
        points: in rising order, series by series.
        has_constant: whether a series has the same scale at every step, so that at 1 it is the tuned model.
    """

    axis: str
    points: tuple[Point, ...]
    has_constant: bool = True

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(point.series for point in self.points))

    @property
    def front(self) -> list[Point]:
        """The points that no other beats in reward or diversity without losing in the other; [] without diversity."""
        known = [point for point in self.points if point.diversity is not None]
        return [point for point in known if not any(_beats(other, point) for other in known)]

    def csv(self) -> str:
        """A line per point; a field is empty where there is nothing to say."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(
            ["series", self.axis, "images", "reward", "reward_low", "reward_high", "diversity", "on_pareto_front"]
            + ["diversity_low", "diversity_high", "above_base", "above_base_low", "above_base_high"]
            + ["above_tuned", "above_tuned_low", "above_tuned_high"]
        )
        front = self.front
        for point in self.points:
            diversity, *diversity_interval = written(point.diversity)
            on_front = "" if point.diversity is None else str(point in front).lower()
            numbers = [*written(point.reward), diversity, on_front, *diversity_interval]
            above = [*written(point.above_base), *written(point.above_tuned)]
            rows.writerow([point.series, f"{point.x:g}", point.images, *numbers, *above])
        return text.getvalue()


def curve(
    axis: str,
    places: Sequence[tuple[str, float, str]],
    scores: Sequence[float],
    diversity: Sequence[float] | None = None,
    prompts: Sequence[str] | None = None,
    constant: Callable[[str], bool] = lambda series: not any(p.startswith(_SCHEDULED) for p in series.split(", ")),
) -> Curve:
    """Group pictures by their places.

    Args:
        axis: what the places lie along.
        places: series, place along the axis and noise of each picture.
        scores: one per picture.
        diversity: one per picture: its mean distance to the others of its setting. Their mean is the setting's.
        prompts: one per picture. Pictures of one prompt are alike, so that the interval is over prompts where there
            are several, and over pictures else.
        constant: whether a series has the same scale at every step; by default as labels say it.

    Raises:
        ValueError: the numbers of these differ, there are none, or one is not finite.
    """
    _check_numbers(scores, labels=places, diversity=diversity, prompts=prompts)
    texts = prompts or [""] * len(scores)
    rows: dict[tuple[str, float], list[int]] = {}
    for row, (series, x, _) in enumerate(places):
        rows.setdefault((series, x), []).append(row)
    order = {series: number for number, series in enumerate(dict.fromkeys(series for series, *_ in places))}
    pairs = [(text, noise) for text, (*_, noise) in zip(texts, places, strict=True)]

    def by_pair(series: str, x: float | None) -> dict[tuple[str, str], float]:
        return {pairs[row]: scores[row] for row in rows.get((series, x), [])}

    points = []
    for series, x in sorted(rows, key=lambda place: (order[place[0]], place[1])):
        own, of_own = rows[series, x], by_pair(series, x)
        of_prompts = [texts[row] for row in own]
        of_base = by_pair(series, _BASE.get(axis))
        of_tuned = by_pair(series, _TUNED.get(axis) if constant(series) else None)
        points.append(
            Point(
                series,
                x,
                len(own),
                estimate([scores[row] for row in own], of_prompts),
                None if diversity is None else _diversity([diversity[row] for row in own], of_prompts),
                _above(of_own, of_base, len(own)),
                _above(of_own, of_tuned, len(own)),
            )
        )
    return Curve(axis, tuple(points), any(map(constant, order)))


def _check_numbers(scores: Sequence[float], **others: Sequence[Any] | None) -> None:
    """Raises ValueError: see `curve`."""
    for name, values in others.items():
        if values is not None and len(values) != len(scores):
            raise ValueError(
                f"{name}: there are {len(values)} of them for {len(scores)} scores; connect what belongs to the same "
                "images."
            )
    if not scores:
        raise ValueError("scores: there are none; connect those of RLG Score.")
    for name, values in (("scores", scores), ("diversity", others["diversity"] or ())):
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: one is not a finite number; look at the images that were measured.")


def estimate(values: Sequence[float], prompts: Sequence[str] | None = None) -> Estimate:
    """Mean and Student's interval, over the means of prompts where there are several.

    The mean is that of prompts as well: each counts the same, however many pictures it has.
    """
    if prompts is not None and len(set(prompts)) > 1:
        groups: dict[str, list[float]] = {}
        for value, prompt in zip(values, prompts, strict=True):
            groups.setdefault(prompt, []).append(value)
        values = [math.fsum(group) / len(group) for group in groups.values()]
    return student(values)


def written(value: Estimate | None) -> list[str]:
    """Mean and ends of the interval, for a table; empty where there is nothing to say."""
    numbers = (None,) * 3 if value is None else (value.mean, value.low, value.high)
    return ["" if number is None else f"{number:.6g}" for number in numbers]


def _diversity(values: Sequence[float], prompts: Sequence[str]) -> Estimate:
    """Those of one prompt are distances between the same pictures: they say nothing of an interval."""
    if len(set(prompts)) > 1:
        return estimate(values, prompts)
    return Estimate(math.fsum(values) / len(values), None, None)


def _above(scores: dict[tuple[str, str], float], model: dict[tuple[str, str], float], images: int) -> Estimate | None:
    """Of scores by prompt and noise; None where these do not tell all pictures apart, or are not the model's."""
    if len(scores) < images or scores.keys() != model.keys():
        return None
    return estimate([score - model[pair] for pair, score in scores.items()], [prompt for prompt, _ in scores])


def _beats(one: Point, other: Point) -> bool:
    ones, others = (one.reward.mean, one.diversity.mean), (other.reward.mean, other.diversity.mean)
    return ones != others and all(a >= b for a, b in zip(ones, others, strict=True))
