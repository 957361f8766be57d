"""RLGSweep against one RLGKSampler run per picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.host import Extension

from .evaluations import at_evaluations
from .methods import plain_cfg
from .models import Files, load_model, load_tuned
from .task import CFG, Method, make_task

_STEPS, _LATENT = 10, 16
_SWEEPS = {
    "7 scales": ([0, 0.5, 1, 1.6, 2, 3, 4], []),
    "5 switch points × 5 scales": ([0.5, 1, 1.6, 2, 3], [0.1, 0.3, 0.5, 0.7, 0.9]),
}
"""Name → scales and switch points."""


@dataclass(frozen=True)
class SweepResult:
    """One sweep and the same pictures one by one.

    Attributes:
        evaluations, evaluations_apart: rows of latents that went through the model.
        seconds, seconds_apart: one entry per round.
    """

    name: str
    evaluations: int
    evaluations_apart: int
    seconds: list[float]
    seconds_apart: list[float]


def measure_sweeps(
    files: Files, extension: Extension, rounds: int, progress: Callable[[str], None]
) -> list[SweepResult]:
    """Each sweep, and one run per picture of it."""
    base = load_model(files.base)
    task = make_task(_LATENT, 1, _STEPS)
    inputs = {
        "base": base, "tuned": load_tuned(base, files.adapter, extension), "seed": 7, "steps": _STEPS, "cfg": CFG,
        "sampler_name": "euler", "scheduler": "normal", "positive": task.conditioning(task.positive),
        "negative": task.conditioning(task.negative), "denoise": 1.0,
    }  # fmt: skip
    network = plain_cfg(base)

    def sample(node: str, **more: Any) -> None:
        latent = {"samples": torch.zeros_like(task.noise)}  # another each time: a sweep keeps the cells of the same one
        extension.run_node(node, **inputs, latent_image=latent, **more)

    def measured(name: str, scales: list[float], switches: list[float]) -> SweepResult:
        # As the sweep has them: a row for each switch point.
        schedules = [
            {"schedule": extension.run_node("RLGCombinedGeneration", switch_percent=switch, scale=scale)[0]}
            for switch in switches for scale in scales
        ]  # fmt: skip
        cells = schedules or [{"scale": scale} for scale in scales]
        texts = {"scales": ", ".join(map(str, scales)), "switch_percents": ", ".join(map(str, switches))}
        runs = (
            lambda: sample("RLGSweep", **texts),
            lambda: [sample("RLGKSampler", **{"scale": 1.0, **cell}) for cell in cells],
        )
        return _compared(name, runs, network, rounds, progress)

    return [measured(name, *axes) for name, axes in _SWEEPS.items()]


def _compared(
    name: str,
    runs: Sequence[Callable[[], object]],
    network: Method,
    rounds: int,
    progress: Callable[[str], None],
) -> SweepResult:
    """A sweep and its pictures one by one: rows through the network, and seconds round by round."""
    rows, seconds = ([], []), ([], [])
    progress(f"sweeps: {name}, counting")
    for run, counted in zip(runs, rows, strict=True):
        with at_evaluations(network, lambda tensors, counted=counted: counted.append(tensors[0].shape[0])):
            run()
    for number in range(rounds):
        progress(f"sweeps: {name}, round {number + 1} of {rounds}")
        for run, timed in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            timed.append(time.perf_counter() - start)
    return SweepResult(name, *map(sum, rows), *seconds)
