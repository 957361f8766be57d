"""An iteration of a reward gradient: from the score through the decoded picture and the last predictions.

The model and the VAE are not needed at once: the first pass gives x0, without gradients; VAE and reward then say which
way x0 should go; the second pass, which computes the same again, takes that into the LoRA.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..iteration import Learned, Report
from ..policy.host_model import HostModel, Run
from ..streams import noise
from ..task import Task
from ..team import Team
from .gradient_sum import GradientSum
from .real_images import RealImages, diffusion_loss
from .rollout import Pictures, chunks
from .settings import DirectAlign, RewardGradient


class RewardLearner:
    """Makes the iterations of a method whose gradient is that of the reward; what it learns from pictures, kinds say.

    Args:
        method: its settings.
        task: what is trained for.
        host: the model with the policy, on the task's prompts and the method's sigmas.
        batch_size: pictures per call of the model.
        seed: of the run.
        team: who makes the groups.

    Raises:
        ValueError: the reward has no gradient, or the method wants images and the task has none.
    """

    def __init__(
        self, method: RewardGradient | DirectAlign, task: Task, host: HostModel, batch_size: int, seed: int, team: Team
    ) -> None:
        self._method, self._task, self._host, self._team = method, task, host, team
        self._batch_size, self._seed = batch_size, seed
        self._images = RealImages(task, method.name) if method.needs_images else None
        task.check_gradient()

    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """See `PolicyLearner.iterate`."""
        method = self._method
        parts = chunks(method.groups, method.group_size, self._batch_size)
        own = [(group, rows) for group, rows in parts if self._team.makes(group)]
        prompts = self._task.prompts.chosen(self._seed, iteration, method.groups)
        scores, losses = torch.zeros(method.groups, method.group_size, dtype=torch.float64), []
        gradients = GradientSum(self._host.policy.parameters.values())
        for number, (group, rows) in enumerate(own):
            pictures = Pictures.of(self._seed, iteration, prompts[group], group, rows, self._task.latent_shape)
            scores[group, rows.start : rows.stop], loss = self._learn_from(pictures, iteration, group)
            gradients.take()
            losses.append(loss * len(rows) / scores.numel())
            report((number + 1) / len(own))
        rewards, diffusion = self._team.total(scores), self._team.total(torch.tensor(sum(losses), dtype=torch.float64))
        gradients.give(self._team)
        return Learned.of(rewards, step(), diffusion=float(diffusion))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Nothing is kept from iteration to iteration."""
        return {}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `tensors`."""

    def _learn_from(self, pictures: Pictures, iteration: int, group: int) -> tuple[torch.Tensor, float]:
        """Add the gradients of some pictures of a group; their scores and their mean diffusion loss."""
        raise NotImplementedError

    def _images_of(self, pictures: Pictures) -> torch.Tensor | None:
        """Latents of the prompt's image, once for each of the pictures; None where the method learns from none."""
        if self._images is None:
            return None
        return self._images[pictures.prompt].expand(len(pictures.own), *pictures.shape)


class LastStepsLearner(RewardLearner):
    """Learns from x0 as the last of some predictions has it: ReFL, ImageReFL, DRaFT-K."""

    def _learn_from(self, pictures: Pictures, iteration: int, group: int) -> tuple[torch.Tensor, float]:
        index, rows = self._method.step(self._seed, iteration, group), len(pictures.own)
        share = rows / (self._method.groups * self._method.group_size)
        clean = self._images_of(pictures)
        started = noise(pictures.own, pictures.shape, torch.device("cpu"))
        size = torch.Size((rows, *pictures.shape))
        x, x0 = self._host.run(pictures.prompt, size, lambda run: self._sampled(run, started, clean, index))
        scores, direction = self._task.scored_with_gradient(x0, [(self._task.prompts.texts[pictures.prompt], 1.0)])
        direction = direction * (-self._method.reward_weight * share / rows)
        loss = self._host.run(
            pictures.prompt, size, lambda run: self._backward(run, x, index, direction, started, clean, share)
        )
        return scores[:, 0], loss

    def _sampled(
        self, run: Run, started: torch.Tensor, clean: torch.Tensor | None, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents where gradients begin, and x0 as it is scored, on the CPU."""
        if self._method.from_images:
            begin = self._method.image_step
            x = run.start(started.to(run.device), clean.to(run.device), begin)
        else:
            begin, x = 0, run.start(started.to(run.device))
        for step in range(begin, index):
            x = run.euler(x, step, step + 1)
        return x.cpu(), self._predicted(run, x, index).cpu()

    def _predicted(self, run: Run, x: torch.Tensor, index: int) -> torch.Tensor:
        """x0 at the last of the predictions with a gradient, the first of which is for x at σ_index."""
        last = index + self._method.gradient_steps - 1
        for step in range(index, last):
            x = run.euler(x, step, step + 1)
        return run.x0(x, last)

    def _backward(
        self,
        run: Run,
        x: torch.Tensor,
        index: int,
        direction: torch.Tensor,
        started: torch.Tensor,
        clean: torch.Tensor | None,
        share: float,
    ) -> float:
        with torch.enable_grad():
            self._predicted(run, x.to(run.device), index).backward(direction.to(run.device))
        if not self._method.image_weight:
            return 0.0
        with torch.enable_grad():
            latents, added = clean.to(run.device), started.to(run.device)
            loss = diffusion_loss(run, latents, added, self._method.image_step).mean()
            (self._method.reward_weight * self._method.image_weight * share * loss).backward()
        return float(loss.detach())
