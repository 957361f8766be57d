"""The course of a training run as a plot: what rose, and how far the model went for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figure import THEMES, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..training.trainer import Iteration

_WIDTH, _HEIGHT = 768, 640


def training_curve(history: Sequence[Iteration], reward: str, unit: str) -> Figure:
    """Reward with its spread over the pictures, distance to the base model and clipped share, over the iterations.

    Args:
        history: finished iterations, at least one.
        reward, unit: name of the reward and what it counts, for the axis.
    """
    theme = THEMES["light"]
    figure = new_figure(_WIDTH, _HEIGHT, theme)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    style(above, theme, "mean over the pictures of an iteration, ± their standard deviation", "")
    style(below, theme, "", "iteration")
    numbers = [entry.number for entry in history]
    mean, spread = (np.array([getattr(entry, name) for entry in history]) for name in ("reward", "spread"))
    of_reward, of_kl, of_clipped = theme.series[:3]
    alone = "o" if len(history) == 1 else None
    above.fill_between(numbers, mean - spread, mean + spread, color=of_reward, alpha=0.15, linewidth=0)
    above.plot(numbers, mean, color=of_reward, marker=alone)
    above.set_ylabel(f"{reward} ({unit})" if unit else reward)
    below.plot(numbers, [entry.kl for entry in history], color=of_kl, marker=alone)
    below.set_ylabel("KL to base", color=of_kl)
    share = below.twinx()
    share.plot(numbers, [entry.clipped for entry in history], color=of_clipped, linestyle="--", marker=alone)
    share.set_ylabel("clipped share", color=of_clipped)
    share.set_ylim(0.0, 1.0)
    return figure
