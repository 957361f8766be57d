"""Branch sampling: one beginning, several continuations (B²-DiffuRL, arXiv 2503.11240).

Where the branches part, the latents are x = noise_scaling(σ, ε, x0): the last prediction x0 and the noise ε that is
left in them. Each branch goes on with √(1 − a²)·ε + a·ε_j instead, ε_j fresh. That has the variance of the noise it
replaces, so the solver sees latents of the right level, for flow and other models alike (the stochastic step of DDIM,
arXiv 2010.02502 eq. 12, taken in place).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.samplers
import comfy.utils
import torch
from tqdm.auto import tqdm

from ..guidance.guided_model import as_part_of
from ..ksampler_inputs import KSamplerInputs, Progress
from ..schedules.schedule import first_step

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)


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
        step = first_step(self.percent, steps)
        if step >= steps:
            raise ValueError(
                f"branch_percent: at {self.percent:g} none of the {steps} steps is left for the branches; lower it, or "
                "raise steps or denoise."
            )
        return step


def branch_samples(
    model: ModelPatcher,
    fork: Fork,
    inputs: KSamplerInputs,
    make_callback: Callable[[int], Callable],
    sampler: comfy.samplers.Sampler | None = None,
    done: Callable[[Sequence[int], torch.Tensor], None] = lambda branches, samples: None,
) -> dict[str, Any]:
    """Sample to the fork once, and from there once per branch; branch j draws fresh noise from seed + j, j from 1.

    Args:
        model: a guided MODEL, or any.
        fork: where and how the branches part.
        inputs: of the stock KSampler.
        make_callback: number of all steps → the host's callback for progress and previews.
        sampler: in place of the one that `inputs` names.
        done: told the number of a branch, from 0, and its samples, (batch, channels, ...), as soon as these are there.

    Returns:
        The latent with `samples` of shape (branches · batch, channels, ...), a branch's pictures next to each other.

    Raises:
        ValueError: the latent is of another kind of model, or no step is left for the branches.
    """
    start, sigmas = inputs.start(model), inputs.sigmas(model)
    count = max(len(sigmas) - 1, 0)
    forked = fork.step(count)
    total = forked + fork.branches * (count - forked)
    logger.info("RLG branches: %d of them, after %d of %d steps in common", fork.branches, forked, count)
    part, progress = as_part_of(model, sigmas.tolist()), Progress(make_callback(total), total)

    def run(sigmas: torch.Tensor, noise: torch.Tensor, start: torch.Tensor, seed: int) -> torch.Tensor:
        """The latents at the end of `sigmas`."""
        return inputs.sample(part, sigmas, noise, start, progress.of_run(len(sigmas) - 1), seed, sampler)

    seed, noise, x0, results = inputs.seed, inputs.noise(start), start, []
    unseen = not comfy.utils.PROGRESS_BAR_ENABLED
    with tqdm(total=fork.branches, desc="RLG branches", unit="branch", disable=unseen) as bar:
        if forked:
            reached = run(sigmas[: forked + 1], noise, start, seed)
            noise, x0 = _parted(model, reached, progress.last_x0, sigmas[forked])
        for branch in range(1, fork.branches + 1):
            fresh = inputs.noise(start, (seed + branch) % 2**64).to(noise)  # where the host keeps latents
            mixed = math.sqrt(1.0 - fork.noise_level**2) * noise + fork.noise_level * fresh
            # A seed that no branch's fresh noise has: on the CPU a stochastic sampler would draw that noise once more.
            own_seed = (seed + fork.branches + branch) % 2**64
            results.append(run(sigmas[forked:], mixed, x0, own_seed))
            done([branch - 1], results[-1])
            bar.update()
    return inputs.latent_of(results)


def _parted(
    model: ModelPatcher, reached: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """ε and x0 of the latents where the branches part, from which the host makes x = noise_scaling(σ, ε, x0).

    Args:
        reached: the latents.
        x0: the last prediction, as the model sees it.
        sigma: noise level of the latents.
    """
    reached = reached.float()
    x0, sigma = x0.to(reached), sigma.to(reached)
    sampling, none = model.get_model_object("model_sampling"), torch.zeros_like(x0)
    x = sampling.noise_scaling(sigma, none, model.model.process_latent_in(reached))
    of_noise = sampling.noise_scaling(sigma, torch.ones_like(x0), none)  # σ, but for models with larger noise
    noise = (x - sampling.noise_scaling(sigma, none, x0)) / of_noise
    return noise, model.model.process_latent_out(x0)
