"""What a sampler asks for in one evaluation, and what each model predicts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

from .branch_options import Options


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that a sampler asks for; a step has one or more.

    Attributes:
        x: latents, shape (batch, channels, ...).
        sigma: noise level of each row, shape (batch,).
        options: model options for the base model.
        seed: of the run.
        with_cfg_parts: whether the two parts of CFG are asked for besides x0.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    options: Options
    seed: int | None
    with_cfg_parts: bool


@dataclass
class Prediction:
    """x0 of one model after CFG and post-CFG patches; where they are asked for, x0 with and without the prompt too."""

    x0: torch.Tensor | None = None
    cond: torch.Tensor | None = None
    uncond: torch.Tensor | None = None

    def recording(self, options: Options) -> Options:
        """Options whose CFG also notes `cond` and `uncond` here."""

        def note(args: dict[str, Any]) -> torch.Tensor:
            self.cond, self.uncond = args["cond_denoised"], args["uncond_denoised"]
            return args["denoised"]

        functions = options.get("sampler_post_cfg_function", [])
        return {**options, "sampler_post_cfg_function": [*functions, note]}

    def moved(self, start: Prediction, end: Prediction) -> Prediction:
        """This one, moved in all its parts by what leads from `start` to `end`."""
        parts = {}
        for name in (field.name for field in fields(self)):
            own, a, b = getattr(self, name), getattr(start, name), getattr(end, name)
            parts[name] = None if own is None or a is None or b is None else own + (b - a)
        return Prediction(**parts)


class KnownPredictions(Protocol):
    """Predictions that several runs have in common, as one run sees them (`sweeps/shared_evaluations.py`)."""

    def at(self, step: int, x: torch.Tensor, sigma: torch.Tensor) -> dict[int, Prediction]:
        """Model → prediction known for these latents; what the caller adds is known to the next run."""
