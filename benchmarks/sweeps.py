"""RLGSweep against one RLGKSampler run per picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch

from evaluation.host import Extension

from .evaluations import Inputs, at_evaluations
from .methods import rlg_guider
from .models import Files, load_model, load_tuned
from .task import CFG, Task, make_task

_STEPS, _LATENT = 10, 16
_SCALES = "0, 0.5, 1, 1.6, 2, 3, 4"
_SWITCHED_SCALES, _SWITCHES = "0.5, 1, 1.6, 2, 3", "0.1, 0.3, 0.5, 0.7, 0.9"


@dataclass(frozen=True)
class SweepResult:
    """One sweep and the same pictures one by one.

    Attributes:
        evaluations, evaluations_apart: rows of latents that went through the model.
        seconds, seconds_apart: one entry per round.
        difference: largest difference of the latents, absolute.
    """

    name: str
    evaluations: int
    evaluations_apart: int
    seconds: list[float]
    seconds_apart: list[float]
    difference: float


def measure_sweeps(
    files: Files, extension: Extension, rounds: int, progress: Callable[[str], None]
) -> list[SweepResult]:
    """Seven scales, and five scales at five switch points."""
    comfy.utils.set_progress_bar_enabled(False)
    base = load_model(files.base)
    tuned = load_tuned(base, files.adapter, extension)
    task = make_task(_LATENT, 1, _STEPS)
    return [
        _measure(name, scales, switches, base, tuned, task, extension, rounds, progress)
        for name, scales, switches in (
            ("7 scales", _SCALES, ""),
            ("5 switch points × 5 scales", _SWITCHED_SCALES, _SWITCHES),
        )
    ]


def _measure(
    name: str, scales: str, switches: str, base: Any, tuned: Any, task: Task, extension: Extension, rounds: int,
    progress: Callable[[str], None],
) -> SweepResult:  # fmt: skip
    inputs = {
        "base": base, "tuned": tuned, "seed": 7, "steps": _STEPS, "cfg": CFG, "sampler_name": "euler",
        "scheduler": "normal", "positive": task.conditioning(task.positive),
        "negative": task.conditioning(task.negative), "latent_image": {"samples": torch.zeros_like(task.noise)},
        "denoise": 1.0,
    }  # fmt: skip

    def together() -> torch.Tensor:
        return extension.run_node("RLGSweep", **inputs, scales=scales, switch_percents=switches)[0]["samples"]

    def apart() -> torch.Tensor:
        pictures = []
        for switch in _numbers(switches) or [None]:
            for scale in _numbers(scales):
                schedule = {}
                if switch is not None:
                    node = {"switch_percent": switch, "scale": scale}
                    schedule = {"schedule": extension.run_node("RLGCombinedGeneration", **node)[0]}
                pictures.append(extension.run_node("RLGKSampler", **inputs, scale=scale, **schedule)[0]["samples"])
        return torch.cat(pictures)

    network = rlg_guider(base, tuned, extension)
    counts, latents = [], []
    for run in (together, apart):
        progress(f"sweeps: {name}, counting")
        rows: list[int] = []

        def note(inputs: Inputs, rows: list[int] = rows) -> None:
            rows.append(inputs[0].shape[0])

        with at_evaluations(network, note):
            latents.append(run())
        counts.append(sum(rows))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        progress(f"sweeps: {name}, round {number + 1} of {rounds}")
        for run, measured in zip((together, apart), seconds, strict=True):
            start = time.perf_counter()
            run()
            measured.append(time.perf_counter() - start)
    return SweepResult(name, *counts, *seconds, (latents[0] - latents[1]).abs().max().item())


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part.strip()]
