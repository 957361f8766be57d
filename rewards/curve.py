"""Reward and diversity against the scale, as numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import Estimate, student


@dataclass(frozen=True)
class Point:
    """What the pictures of one setting are worth.

    Attributes:
        series: what they have in common besides, such as "switch 0.5"; may be empty.
        x: their place along the axis.
    """

    series: str
    x: float
    images: int
    reward: Estimate
    diversity: float | None


@dataclass(frozen=True)
class Curve:
    """All points of an evaluation.

    Attributes:
        axis: what the points lie along: "scale" or "switch".
        points: in rising order, series by series.
    """

    axis: str
    points: tuple[Point, ...]

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
        )
        front = self.front
        for point in self.points:
            numbers = (point.reward.mean, point.reward.low, point.reward.high, point.diversity)
            on_front = "" if point.diversity is None else str(point in front).lower()
            rows.writerow([point.series, f"{point.x:g}", point.images, *map(_written, numbers), on_front])
        return text.getvalue()


def curve(
    axis: str,
    places: Sequence[tuple[str, float]],
    scores: Sequence[float],
    diversity: Sequence[float] | None = None,
    prompts: Sequence[str] | None = None,
) -> Curve:
    """Group pictures by their places.

    Args:
        axis: what the places lie along.
        places: series and place along the axis of each picture.
        scores: one per picture.
        diversity: one per picture: its mean distance to the others of its setting. Their mean is the setting's.
        prompts: one per picture. Pictures of one prompt are alike, so that the interval is over prompts where there
            are several, and over pictures else.

    Raises:
        ValueError: the numbers of these differ, there are none, or one is not finite.
    """
    for name, values in (("labels", places), ("diversity", diversity), ("prompts", prompts)):
        if values is not None and len(values) != len(scores):
            raise ValueError(
                f"{name}: there are {len(values)} of them for {len(scores)} scores; connect what belongs to the same "
                "images."
            )
    if not scores:
        raise ValueError("scores: there are none; connect those of RLG Score.")
    for name, values in (("scores", scores), ("diversity", diversity or ())):
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: one is not a finite number; look at the images that were measured.")
    order = {series: number for number, series in enumerate(dict.fromkeys(series for series, _ in places))}
    points = []
    for series, x in sorted(set(places), key=lambda place: (order[place[0]], place[1])):
        rows = [row for row, other in enumerate(places) if other == (series, x)]
        points.append(
            Point(
                series,
                x,
                len(rows),
                estimate([scores[row] for row in rows], None if prompts is None else [prompts[row] for row in rows]),
                None if diversity is None else math.fsum(diversity[row] for row in rows) / len(rows),
            )
        )
    return Curve(axis, tuple(points))


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


def _beats(one: Point, other: Point) -> bool:
    ones, others = (one.reward.mean, one.diversity), (other.reward.mean, other.diversity)
    return ones != others and all(a >= b for a, b in zip(ones, others, strict=True))


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
