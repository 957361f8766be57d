"""The summary as plots: each reward against the scale, and against diversity."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.plan import Plan
from evaluation.summary import BASELINES, Point
from plots.figure import saved
from plots.reward_curve import reward_curve
from rewards import curve


def plots(plan: Plan, prompts: int, found: Sequence[Point]) -> dict[str, bytes]:
    """Name → file: a PNG and a PDF for each reward, with a series for each pair and for each schedule.

    A schedule stands at the scale that it ends with.
    """
    has_constant = any(cell.scale is not None for cell in plan.cells)
    title = f"{prompts} prompts x {len(plan.seeds)} seeds at every point; bars: 95 % intervals over prompts"
    images = prompts * len(plan.seeds)
    files = {}
    for reward in plan.rewards:
        points = [_drawn(plan, images, point) for point in found if point.reward == reward.name]
        points.sort(key=lambda point: (point.series, point.x))
        figure = reward_curve(curve.Curve("scale", tuple(points), has_constant), "light", title, reward.name)
        files |= {f"{reward.name}.{kind}": saved(figure, kind) for kind in ("png", "pdf")}
    return files


def _drawn(plan: Plan, images: int, point: Point) -> curve.Point:
    names = [point.pair] if len(plan.pairs) > 1 else []
    series = ", ".join([*names, *filter(None, [point.cell.schedule_text])])
    scale = point.cell.schedule.points[-1][1]
    return curve.Point(series, scale, images, point.mean, point.diversity, *map(point.above.get, BASELINES))
