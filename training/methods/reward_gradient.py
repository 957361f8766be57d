"""An iteration of a reward gradient: from the score through the decoded picture and the last predictions.

The model and the VAE are not needed at once: the first pass gives x0, without gradients; VAE and reward then say which
way x0 should go; the second pass, which computes the same again, takes that into the LoRA.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch

from ..iteration import Learned, Report
from ..policy.host_model import Run
from ..streams import noise
from .gradient_sum import GradientSum
from .learner import Learner
from .real_images import RealImages, learn_from_image
from .rollout import Pictures
from .settings import DirectAlign, RewardGradient


class RewardLearner(Learner):
    """Makes the iterations of a method whose gradient is the reward's; what it learns from pictures, kinds say."""

    _method: RewardGradient | DirectAlign

    def _prepare(self) -> None:
        self._images = RealImages(self._task, self._method.name) if self._method.needs_images else None
        self._task.check_gradient()

    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """See `Learner.iterate`."""
        method, own = self._method, self._own(iteration)
        scores, losses = torch.zeros(method.groups, method.group_size, dtype=torch.float64), []
        gradients = GradientSum(self._host.policy.parameters.values())
        for done, (number, pictures) in enumerate(own.items(), 1):
            group, rows = self._parts[number]
            scores[group, rows.start : rows.stop], loss = self._learn_from(pictures, iteration, group)
            gradients.take()
            losses.append(loss * len(rows) / scores.numel())
            report(done / len(own))
        rewards, diffusion = self._team.total(scores), self._team.total(torch.tensor(sum(losses), dtype=torch.float64))
        gradients.give(self._team)
        return Learned.of(rewards, step(), diffusion=float(diffusion))

    @abstractmethod
    def _learn_from(self, pictures: Pictures, iteration: int, group: int) -> tuple[torch.Tensor, float]:
        """Add the gradients of some pictures of a group; their scores and their mean diffusion loss."""

    def _images_of(self, pictures: Pictures) -> torch.Tensor | None:
        """Latents of the prompt's image, once for each of the pictures; None where the method learns from none."""
        if self._images is None:
            return None
        return self._images[pictures.prompt].expand(len(pictures.own), *pictures.shape)


class LastStepsLearner(RewardLearner):
    """Learns from x0 as the last of some predictions has it: ReFL, ImageReFL, DRaFT-K."""

    _method: RewardGradient

    def _learn_from(self, pictures: Pictures, iteration: int, group: int) -> tuple[torch.Tensor, float]:
        index, rows = self._method.step(self._seed, iteration, group), len(pictures.own)
        share = rows / (self._method.groups * self._method.group_size)
        clean = self._images_of(pictures)
        started = noise(pictures.own, pictures.shape, torch.device("cpu"))
        sampled = partial(self._sampled, started=started, clean=clean, index=index)
        x, x0 = self._with_model(pictures.prompt, rows, sampled)
        scores, direction = self._task.scored_with_gradient(x0, [(self._task.prompts.texts[pictures.prompt], 1.0)])
        direction = direction * (-self._method.reward_weight * share / rows)
        backward = partial(
            self._backward, x=x, index=index, direction=direction, started=started, clean=clean, share=share
        )
        return scores[:, 0], self._with_model(pictures.prompt, rows, backward)

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
        weight = self._method.reward_weight * self._method.image_weight * share
        return learn_from_image(run, clean, started, self._method.image_step, weight)
