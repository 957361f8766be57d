"""Branch sampling: one beginning, several continuations (B²-DiffuRL, arXiv 2503.11240).

Where the branches part, the latents are x = noise_scaling(σ, ε, x0): the last prediction x0 and the noise ε that is
left in them. Each branch goes on with √(1 − a²)·ε + a·ε_j instead, ε_j fresh. That has the variance of the noise it
replaces, so the solver sees latents of the right level, for flow and other models alike (the stochastic step of DDIM,
arXiv 2010.02502 eq. 12, taken in place).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from tqdm.auto import tqdm

from ..guidance.guider import as_part_of, check_latent
from .joined_latent import as_one_latent

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Fork:
    """Where and how the branches part.

    Attributes:
        percent: progress, as a part of the steps that run.
        branches: how many.
        noise_level: a, from 0 (all branches the same) to 1 (fresh noise alone).
    """

    percent: float
    branches: int
    noise_level: float

    def step(self, steps: int) -> int:
        """The first step that the branches take on their own.

        Raises:
            ValueError: none of the steps is left for them.
        """
        step = math.ceil((self.percent - _TOLERANCE) * steps)
        if step >= steps:
            raise ValueError(
                f"branch_percent: at {self.percent:g} none of the {steps} steps is left for the branches; lower it, or "
                "raise steps or denoise."
            )
        return max(step, 0)


def branch_samples(
    model: ModelPatcher,
    fork: Fork,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: list,
    negative: list,
    latent: dict[str, Any],
    denoise: float,
    make_callback: Callable[[int], Callable],
    sampler: comfy.samplers.Sampler | None = None,
) -> dict[str, Any]:
    """Sample to the fork once, and from there once per branch.

    Branch j draws its fresh noise from seed + j, j from 1.

    Args:
        model: a guided MODEL, or any.
        fork: where and how the branches part.
        seed ... denoise: as the stock KSampler takes them.
        make_callback: number of all steps → the host's callback for progress and previews.
        sampler: in place of the one called `sampler_name`.

    Returns:
        The latent with `samples` of shape (branches · batch, channels, ...), a branch's pictures next to each other.

    Raises:
        ValueError: the latent is of another kind of model, or no step is left for the branches.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    check_latent(model, samples)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, denoise).sigmas
    count = max(len(sigmas) - 1, 0)
    forked = fork.step(count)
    model = as_part_of(model, sigmas.tolist())
    total = forked + fork.branches * (count - forked)
    logger.info("RLG branches: %d of them, after %d of %d steps in common", fork.branches, forked, count)
    callback = make_callback(total)
    sampler = sampler or comfy.samplers.sampler_object(sampler_name)
    bar = tqdm(total=total, desc="RLG branches", disable=not comfy.utils.PROGRESS_BAR_ENABLED)
    last_x0 = samples

    def run(of_sigmas: torch.Tensor, noise: torch.Tensor, start: torch.Tensor, seed: int, done: int) -> torch.Tensor:
        def report(step: int, x0: torch.Tensor, x: torch.Tensor, _: int) -> None:
            nonlocal last_x0
            last_x0 = x0
            bar.update(done + step + 1 - bar.n)
            callback(done + step, x0, x, total)

        return comfy.sample.sample_custom(
            model, noise, cfg, sampler, of_sigmas, positive, negative, start,
            noise_mask=latent.get("noise_mask"), callback=report, disable_pbar=True, seed=seed,
        )  # fmt: skip

    with bar:
        start = samples
        if forked:
            reached = run(sigmas[: forked + 1], noise, samples, seed, 0)
            x0 = last_x0.to(reached)
            noise = _noise_in(model, reached, x0, sigmas[forked].to(reached))
            start = model.model.process_latent_out(x0)
        results = []
        for branch in range(1, fork.branches + 1):
            fresh = comfy.sample.prepare_noise(samples, (seed + branch) % 2**64, latent.get("batch_index"))
            mixed = math.sqrt(1.0 - fork.noise_level**2) * noise + fork.noise_level * fresh
            done = forked + (branch - 1) * (count - forked)
            # A seed that no branch's fresh noise has: on the CPU a stochastic sampler would draw that noise once more.
            own_seed = (seed + fork.branches + branch) % 2**64
            results.append(run(sigmas[forked:], mixed, start, own_seed, done))
    return as_one_latent(latent, results)


def _noise_in(model: ModelPatcher, reached: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """ε of x = noise_scaling(σ, ε, x0), where `reached` is what the host makes of x at the end of a run."""
    sampling, none = model.get_model_object("model_sampling"), torch.zeros_like(x0)
    x = sampling.noise_scaling(sigma, none, model.model.process_latent_in(reached))
    return (x - sampling.noise_scaling(sigma, none, x0)) / sigma
