"""Pictures drawn from the policy, with everything about their steps that training will ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ...rlg_sampler.stochastic.step import stochastic_step
from ..policy.host_model import Run
from ..policy.trainable_lora import Policy
from ..streams import noise, stream
from .settings import Plan


@dataclass(frozen=True)
class Drawn:
    """One trained step of some pictures, on the CPU.

    Attributes:
        x: latents before it, (rows, channels, ...).
        x_next: latents after it.
        log_density: (rows,) of x_next under the policy that drew it.
        negative: its x0 for the negative prompt.
        base_mean: the base model's mean of x_next; None where nothing asks for it.
    """

    x: torch.Tensor
    x_next: torch.Tensor
    log_density: torch.Tensor
    negative: torch.Tensor
    base_mean: torch.Tensor | None

    def part(self, rows: torch.Tensor) -> Drawn:
        """As `Trajectories.part`."""
        base = None if self.base_mean is None else self.base_mean[rows]
        return Drawn(self.x[rows], self.x_next[rows], self.log_density[rows], self.negative[rows], base)


@dataclass(frozen=True)
class Trajectories:
    """Pictures of one prompt that were computed together, and are again in the update.

    Attributes:
        prompt: its number.
        steps: trained step → what was drawn there.
        end: final latents, (rows, channels, ...), as the model sees them.
    """

    prompt: int
    steps: dict[int, Drawn]
    end: torch.Tensor

    def __len__(self) -> int:
        return len(self.end)

    def part(self, rows: torch.Tensor) -> Trajectories:
        """Those of the pictures whose entry in `rows`, (rows,) bool, is true."""
        return Trajectories(self.prompt, {index: step.part(rows) for index, step in self.steps.items()}, self.end[rows])


@dataclass(frozen=True)
class Pictures:
    """Pictures to be drawn together.

    Attributes:
        prompt: its number.
        common: random numbers for what the group has in common, before its fork.
        own: those of each picture.
        shape: of one picture's latents.
    """

    prompt: int
    common: torch.Generator
    own: list[torch.Generator]
    shape: torch.Size

    @classmethod
    def of(cls, seed: int, iteration: int, prompt: int, group: int, rows: Iterable[int], shape: torch.Size) -> Pictures:
        """Some rows of a group of an iteration."""
        name = ("pictures", iteration, group)
        return cls(prompt, stream(seed, *name), [stream(seed, *name, row) for row in rows], shape)


def chunks(groups: int, group_size: int, batch_size: int) -> list[tuple[int, range]]:
    """(group, its pictures that are computed together), for all groups."""
    starts = range(0, group_size, batch_size)
    return [(g, range(start, min(start + batch_size, group_size))) for g in range(groups) for start in starts]


def draw(run: Run, policy: Policy, pictures: Pictures, plan: Plan, noise_level: float, with_base: bool) -> Trajectories:
    """Draw pictures from the policy.

    Args:
        run: the loaded model.
        with_base: whether the base model's means are wanted.
    """
    own, shape, fork = pictures.own, pictures.shape, -1 if plan.fork is None else plan.fork

    def draw_noise(step: int) -> torch.Tensor:
        return noise(own if step >= fork else [pictures.common], shape, run.device)

    steps: dict[int, Drawn] = {}
    x = run.start(draw_noise(-1))
    for index in range(len(run.sigmas) - 1):
        if index == fork:
            x = x.expand(len(own), *shape)
        noisy = index in plan.noisy
        seen = run.predict(x, index)
        step = stochastic_step(run.sampling, x, seen.x0, run.sigmas, index, noise_level if noisy else 0.0)
        x_next = step.drawn(draw_noise(index)) if noisy else step.mean
        if index in plan.trained:
            base = _base_mean(run, policy, x, index, noise_level).cpu() if with_base else None
            before = steps[index - 1].x_next if index - 1 in steps else x.cpu()  # kept once, though both have it
            steps[index] = Drawn(before, x_next.cpu(), step.log_density(x_next).cpu(), seen.negative.cpu(), base)
        x = x_next
    return Trajectories(pictures.prompt, steps, x.cpu())


def _base_mean(run: Run, policy: Policy, x: torch.Tensor, index: int, noise_level: float) -> torch.Tensor:
    with policy.disabled():
        x0 = run.x0(x, index)
    return stochastic_step(run.sampling, x, x0, run.sigmas, index, noise_level).mean
