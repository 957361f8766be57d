"""An iteration of SRPO: Direct-Align's steps from known noise, and a reward that compares two words (arXiv 2509.06942).

With x_a the picture x and its noise ε at σ_a, and v̂ what the model says of the direction there, a step to σ_b and the
picture recovered from it are

    x_b = x_a + (σ_b − σ_a)·v̂,    x̂ = (x_b − σ_b·ε) / (1 − σ_b)    (flow models; ε and v models: x̂ = x_b − σ_b·ε)

which is x where v̂ is right. The gradient passes through v̂ alone, so its sign is that of σ_b − σ_a, and one prediction
is enough at any σ_a. Noise, range and words are as in the reference, Tencent-Hunyuan/SRPO fastvideo/SRPO.py.
"""

from __future__ import annotations

import torch

from ...rlg_sampler.stochastic.step import is_flow
from ..policy.host_model import Run
from ..streams import noise
from .reward_gradient import RewardLearner
from .rollout import Pictures
from .settings import DirectAlign

_MORE_NOISE, _END, _LESS_NOISE = range(3)
"""Indices of a group's sigmas: one step begins with more noise, one with less, and both end between."""


class DirectAlignLearner(RewardLearner):
    """Learns from pictures that are recovered after one step; the scores it reports are those of steps to less noise,
    under the wanted word."""

    _method: DirectAlign

    def _learn_from(self, pictures: Pictures, iteration: int, group: int) -> tuple[torch.Tensor, float]:
        levels = self._method.levels(self._seed, iteration, group)
        sigmas, steps = self._sigmas(levels), self._steps(pictures.prompt, iteration, levels)
        rows = len(pictures.own)
        added = noise(pictures.own, pictures.shape, torch.device("cpu"))
        clean = self._images_of(pictures)
        if clean is None:
            clean = self._with_model(pictures.prompt, rows, lambda run: run.sampled(added).cpu())

        def recovered(run: Run) -> dict[int, torch.Tensor]:
            return {start: _recovered(run, clean, added, start).cpu() for start in steps}

        found = self._with_model(pictures.prompt, rows, recovered, sigmas)
        scored = {start: self._task.scored_with_gradient(found[start], asked) for start, asked in steps.items()}
        share = -1.0 / (len(steps) * self._method.groups * self._method.group_size)

        def backward(run: Run) -> None:
            for start, (_, direction) in scored.items():
                with torch.enable_grad():
                    _recovered(run, clean, added, start).backward(share * direction.to(run.device))

        self._with_model(pictures.prompt, rows, backward, sigmas)
        scores, _ = scored[_MORE_NOISE]
        return scores[:, 0], 0.0

    def _sigmas(self, levels: tuple[float, float, float]) -> torch.Tensor:
        sampling = self._task.model.get_model_object("model_sampling")
        # At 0 and 1 the host gives ends that a sampler does not reach: 999999999.9, and 0, from which there is no step.
        lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
        ends = map(sampling.percent_to_sigma, (self._method.start_percent, self._method.end_percent))
        most, least = (min(max(sigma, lowest), highest) for sigma in ends)
        return torch.tensor([least + (most - least) * level for level in levels])

    def _steps(
        self, prompt: int, iteration: int, levels: tuple[float, float, float]
    ) -> dict[int, list[tuple[str, float]]]:
        """Of each step, by the sigma that it begins at, the prompts for the reward with their weights."""
        wanted, unwanted = (f"{word}. {self._task.prompts.texts[prompt]}" for word in self._method.words(iteration))
        _, end, least = levels
        more_wanted = 1.0 + _between(self._method.wanted_weight, end)
        more_unwanted = 1.0 + _between(self._method.unwanted_weight, least)
        return {
            _MORE_NOISE: [(wanted, more_wanted), (unwanted, -1.0)],
            _LESS_NOISE: [(unwanted, more_unwanted), (wanted, -1.0)],
        }


def _recovered(run: Run, clean: torch.Tensor, added: torch.Tensor, start: int) -> torch.Tensor:
    """The picture after a step from σ_start to the end of steps, (rows, channels, ...) latents."""
    clean, added = clean.to(run.device), added.to(run.device)
    stepped = run.euler(run.start(added, clean, start), start, _END)
    without = stepped - run.start(added, torch.zeros_like(clean), _END)
    return without / (1.0 - run.sigmas[_END]) if is_flow(run.sampling) else without


def _between(ends: tuple[float, float], level: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * level
