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
    """Reward with its spread over the pictures; distance to the base and clipped share below, where they are known.

    Args:
        history: finished iterations, at least one.
        reward, unit: name of the reward and what it counts, for the axis.
    """
    theme = THEMES["light"]
    figure = new_figure(_WIDTH, _HEIGHT, theme)
    numbers = [entry.number for entry in history]
    mean, spread, kl, clipped = (
        np.array([getattr(entry, name) for entry in history]) for name in ("reward", "spread", "kl", "clipped")
    )
    of_reward, of_kl, of_clipped = theme.series[:3]
    alone = "o" if len(history) == 1 else None
    rows = 2 if kl.any() or clipped.any() else 1  # many methods look at neither
    above, *others = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:rows])[:, 0]
    spread_of = "mean over the pictures of an iteration, ± their standard deviation"
    style(above, theme, spread_of, "" if others else "iteration")
    above.fill_between(numbers, mean - spread, mean + spread, color=of_reward, alpha=0.15, linewidth=0)
    above.plot(numbers, mean, color=of_reward, marker=alone)
    above.set_ylabel(f"{reward} ({unit})" if unit else reward)
    for below in others:
        style(below, theme, "", "iteration")
        if kl.any():
            below.plot(numbers, kl, color=of_kl, marker=alone)
            below.set_ylabel("KL to base", color=of_kl)
        if clipped.any():
            share = below.twinx() if kl.any() else below
            share.plot(numbers, clipped, color=of_clipped, linestyle="--", marker=alone)
            share.set_ylabel("clipped share", color=of_clipped)
            share.set_ylim(0.0, 1.0)
    return figure
