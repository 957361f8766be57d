"""The course of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .trainer import Iteration

_SIZE, _DPI = (6.4, 5.4), 120
_REWARD, _KL, _CLIPPED = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's


def curve_picture(history: Sequence[Iteration], reward: str, unit: str) -> torch.Tensor:
    """Reward with its spread over the pictures, distance to the base model and clipped share, over the iterations.

    Args:
        history: finished iterations, at least one.
        reward, unit: name of the reward and what it counts, for the axis.

    Returns:
        IMAGE of shape (1, height, width, 3), float32 from 0 to 1.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = [entry.number for entry in history]
    rewards = np.array([entry.reward for entry in history])
    spreads = np.array([entry.spread for entry in history])
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.fill_between(numbers, rewards - spreads, rewards + spreads, color=_REWARD, alpha=0.15, linewidth=0)
    above.plot(numbers, rewards, color=_REWARD, marker="o" if len(history) == 1 else None)
    above.set_ylabel(f"{reward} ({unit})" if unit else reward)
    above.set_title("mean over the pictures of an iteration, ± their standard deviation", fontsize=9)
    below.plot(numbers, [entry.kl for entry in history], color=_KL)
    below.set_ylabel("KL to base", color=_KL)
    below.set_xlabel("iteration")
    share = below.twinx()
    share.plot(numbers, [entry.clipped for entry in history], color=_CLIPPED, linestyle="--")
    share.set_ylabel("clipped share", color=_CLIPPED)
    share.set_ylim(0.0, 1.0)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[None, ..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)
