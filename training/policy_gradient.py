"""An iteration of a policy gradient: draw pictures, score them, and make more likely what made the good ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..rlg_sampler.stochastic.step import stochastic_step
from .advantages import compared
from .host_model import HostModel, Run
from .losses import clipped_policy_loss
from .method import Plan, PolicyGradient
from .rollout import Drawn, Pictures, Trajectories, draw
from .streams import stream
from .task import Task

Result = TypeVar("Result")
Report = Callable[[float], None]
"""Called with the finished share of an iteration, 0 … 1."""


@dataclass(frozen=True)
class Learned:
    """What an iteration saw.

    Attributes:
        reward, spread: mean and standard deviation over its pictures.
        kl: distance to the base model, before β.
        clipped: share of the density ratios outside the clip range.
        gradient: norm before it was limited, mean over the updates.
    """

    reward: float
    spread: float
    kl: float
    clipped: float
    gradient: float


class PolicyLearner:
    """Makes the iterations of a policy gradient.

    Args:
        method: its settings.
        task: what is trained for.
        host: the model with the policy, on the task's prompts and the method's sigmas.
        batch_size: pictures per call of the model.
        seed: of the run.
    """

    def __init__(self, method: PolicyGradient, task: Task, host: HostModel, batch_size: int, seed: int) -> None:
        self._method, self._task, self._host = method, task, host
        self._batch_size, self._seed = batch_size, seed

    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """Make an iteration.

        Args:
            iteration: its number; all that is random in it follows from that.
            step: takes an optimiser step with the gradients that there are, and returns their norm.
            report: told how far it is.
        """
        plan = self._method.plan(self._seed, iteration)
        drawn, rewards = self._rollouts(iteration, plan, report)
        advantages = self._advantages(drawn, rewards)
        kl = clipped = gradient = 0.0
        shares = self._shares(iteration, drawn)
        for number, share in enumerate(shares):
            pictures = sum(len(drawn[chunk]) for chunk in share)
            for chunk in share:
                sums = self._backward(drawn[chunk], advantages[chunk], pictures)
                kl, clipped = kl + sums[0] / len(shares), clipped + sums[1] / len(shares)
            gradient += step() / len(shares)
            report(0.5 + 0.5 * (number + 1) / len(shares))
        return Learned(float(rewards.mean()), float(rewards.std(correction=0)), kl, clipped, gradient)

    def _rollouts(self, iteration: int, plan: Plan, report: Report) -> tuple[list[Trajectories], torch.Tensor]:
        method, chunks = self._method, list(self._chunks())
        prompts = self._task.prompts.chosen(self._seed, iteration, method.groups)
        drawn, rewards = [], []
        for number, (group, rows) in enumerate(chunks):
            pictures = Pictures.of(self._seed, iteration, prompts[group], group, rows, self._task.latent_shape)
            drawn.append(self._with_model(pictures.prompt, len(rows), lambda run, p=pictures: self._draw(run, p, plan)))
            images = self._task.decoded(drawn[-1].end)
            rewards.append(self._task.scores(images, [pictures.prompt] * len(rows)))
            report(0.5 * (number + 1) / len(chunks))
        return drawn, torch.cat(rewards)

    def _draw(self, run: Run, pictures: Pictures, plan: Plan) -> Trajectories:
        return draw(run, self._host.policy, pictures, plan, self._method.noise_level, self._method.kl_weight > 0)

    def _chunks(self) -> Iterator[tuple[int, range]]:
        """(group, its pictures that are computed together)."""
        size = self._method.group_size
        for group in range(self._method.groups):
            for start in range(0, size, self._batch_size):
                yield group, range(start, min(start + self._batch_size, size))

    def _advantages(self, drawn: list[Trajectories], rewards: torch.Tensor) -> list[torch.Tensor]:
        prompts = [chunk.prompt for chunk in drawn for _ in range(len(chunk))]
        groups = prompts if self._method.compared_with == "group" else [0] * len(prompts)
        advantages = compared(rewards, groups, self._method.largest_advantage)
        return list(advantages.split([len(chunk) for chunk in drawn]))

    def _shares(self, iteration: int, drawn: list[Trajectories]) -> list[list[int]]:
        """Chunks by the update that they take part in."""
        order = torch.randperm(len(drawn), generator=stream(self._seed, "order", iteration))
        return [share.tolist() for share in order.chunk(self._method.updates)]

    def _backward(self, drawn: Trajectories, advantages: torch.Tensor, pictures: int) -> tuple[float, float]:
        """Add the gradients of some of an update's pictures; returns their parts of its mean KL and clipped share."""
        if not advantages.any() and self._method.kl_weight == 0.0:
            return 0.0, 0.0
        return self._with_model(
            drawn.prompt, len(drawn), lambda run: self._gradients(run, drawn, advantages.to(run.device), pictures)
        )

    def _gradients(self, run: Run, drawn: Trajectories, advantages: torch.Tensor, pictures: int) -> tuple[float, float]:
        method, kl, clipped = self._method, 0.0, 0.0
        weight = 1.0 / (pictures * len(drawn.steps))
        for index, step in drawn.steps.items():
            with torch.enable_grad():
                ratio, divergence = self._compared_steps(run, index, step)
                loss = clipped_policy_loss(ratio, advantages, method.clip_range) + method.kl_weight * divergence
                (loss.sum() * weight).backward()
            kl += float(divergence.detach().sum()) * weight
            clipped += float(((ratio.detach() - 1.0).abs() > method.clip_range).sum()) * weight
        return kl, clipped

    def _compared_steps(self, run: Run, index: int, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) each: density of what was drawn by that when it was drawn, and the distance to the base model."""
        x, device = drawn.x.to(run.device), run.device
        now = stochastic_step(run.sampling, x, run.x0(x, index), run.sigmas, index, self._method.noise_level)
        ratio = (now.log_density(drawn.x_next.to(device)) - drawn.log_density.to(device)).exp()
        if drawn.base_mean is None:
            return ratio, torch.zeros_like(ratio)
        return ratio, now.divergence(drawn.base_mean.to(device))

    def _with_model(self, prompt: int, rows: int, body: Callable[[Run], Result]) -> Result:
        return self._host.run(prompt, torch.Size((rows, *self._task.latent_shape)), body)
