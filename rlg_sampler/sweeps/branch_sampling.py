"""Branch sampling: one beginning, several continuations (B²-DiffuRL, arXiv 2503.11240).

Where the branches part, the latents are x = noise_scaling(σ, ε, x0): the last prediction x0 and the noise ε that is
left in them. Each branch goes on with √(1 − a²)·ε + a·ε_j instead, ε_j fresh. That has the variance of the noise it
replaces, so the solver sees latents of the right level, for flow and other models alike (the stochastic step of DDIM,
arXiv 2010.02502 eq. 12, taken in place).

The host is given the run's own latents and noise all the same: where a mask is soft, it mixes them in at every step.
"""

from __future__ import annotations

import functools
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
    """Sample to the fork once, and from there once per branch; branch j draws fresh noise from seed + 1 + j, j from 1.

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
        ValueError: the latent is of another kind of model, no step is left for the branches, or the sampler cannot
            begin where they do.
    """
    start, sigmas = inputs.start(model), inputs.sigmas(model)
    count = max(len(sigmas) - 1, 0)
    forked = fork.step(count)
    total = forked + fork.branches * (count - forked)
    logger.info("RLG branches: %d of them, after %d of %d steps in common", fork.branches, forked, count)
    part, progress = as_part_of(model, sigmas.tolist()), Progress(make_callback(total), total)
    sampler = sampler or comfy.samplers.sampler_object(inputs.sampler_name)
    parts = _Parts(sampler, sigmas) if forked else None
    if parts is not None:
        parts.check_steps(forked, count - forked)

    def run(own: torch.Tensor, noise: torch.Tensor, seed: int, x: torch.Tensor | None = None) -> torch.Tensor:
        """The latents at the end of some sigmas that follow each other, which begin at x."""
        of_part = sampler if parts is None else parts.sampler(x)
        return inputs.sample(part, own, noise, start, progress.of_run(len(own) - 1), seed, of_part)

    seed, noise, results = inputs.seed, inputs.noise(start), []
    sampling = model.get_model_object("model_sampling")
    unseen = not comfy.utils.PROGRESS_BAR_ENABLED
    with tqdm(total=fork.branches, desc="RLG branches", unit="branch", disable=unseen) as bar:
        if forked:
            reached = run(sigmas[: forked + 1], noise, seed)
            left, x0 = _parted(model, reached, progress.last_x0, sigmas[forked])
        for branch in range(1, fork.branches + 1):
            # A stochastic sampler of the seed s draws the noise of s + 1 on the CPU. So these are other seeds than the
            # beginning's, and what a branch draws on its way is the fresh noise of none.
            fresh_seed, own_seed = ((seed + n + branch) % 2**64 for n in (1, 1 + fork.branches))
            fresh = inputs.noise(start, fresh_seed)
            if forked:
                mixed = _mixed(left, fresh.to(left), fork.noise_level)  # where the host keeps latents
                x = sampling.noise_scaling(sigmas[forked].to(mixed), mixed, x0)
                results.append(run(sigmas[forked:], noise, own_seed, x))
            else:
                results.append(run(sigmas, _mixed(noise, fresh.to(noise), fork.noise_level), own_seed))
            done([branch - 1], results[-1])
            bar.update()
    return inputs.latent_of(results)


def _mixed(noise: torch.Tensor, fresh: torch.Tensor, level: float) -> torch.Tensor:
    return math.sqrt(1.0 - level**2) * noise + level * fresh


class _Parts:
    """A sampler for the parts of one run, in which a mask acts as in the whole.

    Args:
        sampler: of the whole run.
        sigmas: σ_0 … σ_n of the whole run, by which a mask may change over the steps.

    Raises:
        ValueError: the sampler is of a kind that cannot go on from given latents.
    """

    def __init__(self, sampler: comfy.samplers.Sampler, sigmas: torch.Tensor) -> None:
        if not isinstance(sampler, comfy.samplers.KSAMPLER):
            raise ValueError(f"sampler: {type(sampler).__name__} cannot begin in the middle of a run; choose another.")
        self._sampler, self._sigmas = sampler, sigmas
        self._noise: torch.Tensor | None = None
        """What the first part mixes in where the picture is kept; some samplers draw it by their seed."""

    def check_steps(self, *parts: int) -> None:
        """Raises ValueError: a part has fewer steps than the sampler can make."""
        name = getattr(self._sampler.sampler_function, "__name__", "").removeprefix("sample_")
        if name.startswith("unipc") and 1 in parts:
            raise ValueError(
                "branch_percent: UniPC takes no single step, and the branches or their beginning would be one; choose "
                "another value or another sampler."
            )

    def sampler(self, x: torch.Tensor | None) -> comfy.samplers.KSAMPLER:
        """For the next part, which goes on from x, latents as the model sees them; None = from what its inputs make."""
        own = self._sampler.sampler_function

        @functools.wraps(own)
        def sampled(
            model: comfy.samplers.KSamplerX0Inpaint, begun: torch.Tensor, *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            model.sigmas = self._sigmas.to(model.sigmas)
            if self._noise is None:
                self._noise = model.noise
            model.noise = self._noise
            return own(model, begun if x is None else x.to(begun), *args, **kwargs)

        return comfy.samplers.KSAMPLER(sampled, self._sampler.extra_options, self._sampler.inpaint_options)


def _parted(
    model: ModelPatcher, reached: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """ε and x0 of the latents where the branches part, which are x = noise_scaling(σ, ε, x0), as the model sees them.

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
    return noise, x0
