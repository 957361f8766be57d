"""What a schedule does over a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figure import TEXT, THEMES, new_figure, style, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..rlg_sampler.schedules.schedule import Schedule

_SIZE = 512, 320
_STEPS = 512


def schedule_curve(schedule: Schedule) -> Figure:
    """The scale over the run, steps from left to right; base and tuned model are marked."""
    theme = THEMES["dark"]
    figure = new_figure(*_SIZE, theme)
    axes = figure.subplots()
    style(axes, theme, wrapped(f"scale {schedule}", _SIZE[0]), "step / number of steps")
    axes.plot([step / _STEPS for step in range(_STEPS)], schedule.per_step(_STEPS), color=theme.series[1], linewidth=2)
    for scale, name in ((0.0, "base"), (1.0, "tuned")):
        axes.axhline(scale, color=theme.faint, linestyle=":", zorder=1)
        axes.annotate(
            name, (1, scale), (-4, 3), textcoords="offset points", ha="right", color=theme.faint, fontsize=TEXT
        )
    # Where it is going, also if no step falls on the end itself.
    axes.update_datalim([(0, scale) for _, scale in schedule.points])
    axes.autoscale_view()
    axes.set_xlim(0, 1)
    return figure
