"""The summary as pictures: each reward against the scale, and against diversity."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from evaluation.plan import Plan
from evaluation.summary import Point
from rewards import curve, curve_plot


def plots(plan: Plan, prompts: int, found: Sequence[Point]) -> dict[str, Image.Image]:
    """A picture for each reward, with a series for each pair, and for each schedule the scale that it ends with."""
    title = f"{prompts} prompts x {len(plan.seeds)} seeds at every point; bars: 95 % intervals over prompts"
    return {
        reward.name: curve_plot.plot(_curve(plan, prompts, found, reward.name), "light", title, reward.name)
        for reward in plan.rewards
    }


def _curve(plan: Plan, prompts: int, found: Sequence[Point], reward: str) -> curve.Curve:
    drawn = [_drawn(plan, prompts, point) for point in found if point.reward == reward]
    return curve.Curve("scale", tuple(sorted(drawn, key=lambda point: (point.series, point.x))))


def _drawn(plan: Plan, prompts: int, point: Point) -> curve.Point:
    names = [point.pair] if len(plan.pairs) > 1 else []
    names += [point.cell.schedule_text] if point.cell.schedule_text else []
    return curve.Point(
        series=", ".join(names),
        x=point.cell.schedule.points[-1][1],
        images=prompts * len(plan.seeds),
        reward=point.mean,
        diversity=None if point.diversity is None else point.diversity.mean,
    )
