"""An iteration of a policy gradient: draw pictures, score them, and make more likely what made the good ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch

from ...rlg_sampler.stochastic.step import stochastic_step
from ..iteration import Learned, Report
from ..policy.host_model import Run
from ..policy.room import check_room
from ..streams import noise, stream
from .advantages import ROUNDS, best_and_worst, compared
from .gradient_sum import GradientSum
from .learner import Learner
from .losses import clipped_policy_loss
from .real_images import RealImages, learn_from_image
from .rollout import Drawn, Pictures, Trajectories, draw
from .settings import Plan, PolicyGradient


class PolicyLearner(Learner):
    """Makes the iterations of a policy gradient."""

    _method: PolicyGradient

    def _prepare(self) -> None:
        self._check_scores()
        self._check_room()
        self._images = RealImages(self._task, self._method.name) if self._method.image_weight else None
        self._seen = torch.zeros(0, 3, dtype=torch.float64)
        """Of the latest rounds: iteration, prompt, reward."""

    def _check_room(self) -> None:
        """Raises ValueError: this worker's pictures of an iteration do not fit into main memory until the update."""
        count = math.ceil(self._method.groups / self._team.size) * self._method.group_size
        trained = self._method.plan(self._seed, self._method.stages).trained  # the most, where they grow
        # See Drawn: the latents before and after each, which neighbours share, and what was predicted; the end.
        of_a_step = 2 if self._method.kl_weight > 0 else 1
        around = {*trained, *(step + 1 for step in trained)}
        # Of random steps, none may be neighbours.
        latents = (2 * len(trained) if self._method.trained_steps else len(around)) + of_a_step * len(trained) + 1
        size = latents * self._task.latent_shape.numel() * torch.float32.itemsize
        check_room(f"groups: {count} pictures per iteration", count, size, " with all of their steps")

    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """See `Learner.iterate`."""
        plan = self._method.plan(self._seed, iteration)
        drawn, scores = self._rollouts(iteration, plan, report)
        advantages = self._advantages(iteration, self._task.sum.measured(scores))
        own, norms = torch.zeros(3, dtype=torch.float64), []
        shares = self._shares(iteration)
        for number, share in enumerate(shares):
            gradients = GradientSum(self._host.policy.parameters.values())
            kl, clipped = self._update(share, drawn, advantages, gradients, unchanged=number == 0)
            own += torch.tensor([kl, clipped, self._near_images(iteration, number, gradients)], dtype=torch.float64)
            gradients.give(self._team)
            norms.append(step())
            report(0.5 + 0.5 * (number + 1) / len(shares))
        kl, clipped, diffusion = (self._team.total(own) / len(shares)).tolist()
        rewards = self._task.sum.weighed(scores)  # measured by each iteration's own spread they would never rise
        return Learned.of(rewards, sum(norms) / len(norms), kl, clipped, diffusion)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Learner.tensors`."""
        return {"seen": self._seen}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Learner.restore`."""
        self._seen = tensors["seen"].clone()  # not a view of the checkpoint: Windows replaces no file that is in use

    def _rollouts(self, iteration: int, plan: Plan, report: Report) -> tuple[dict[int, Trajectories], torch.Tensor]:
        """This worker's pictures by the number of their part, and all workers' (pictures, rewards) scores."""
        method = self._method
        from_policy = partial(
            draw, policy=self._host.policy, plan=plan, noise_level=method.noise_level, with_base=method.kl_weight > 0
        )

        def drawn(pictures: Pictures) -> Trajectories:
            return self._with_model(pictures.prompt, len(pictures.own), partial(from_policy, pictures=pictures))

        return self._drawn(iteration, drawn, lambda made: made.end, report)

    def _advantages(self, iteration: int, rewards: torch.Tensor) -> list[torch.Tensor]:
        """Of each part, those of its pictures."""
        method, prompts = self._method, self._prompts(iteration)
        if method.compared_with == "branch":
            numbers = torch.tensor(prompts, dtype=torch.float64)
            latest = self._seen[self._seen[:, 0] >= iteration - ROUNDS]
            advantages = best_and_worst(rewards, numbers, latest[:, 1:], method.group_size, method.largest_advantage)
            own = torch.stack([torch.full_like(numbers, iteration), numbers, rewards], dim=1)
            self._seen = torch.cat([latest, own])
        else:
            groups = prompts if method.compared_with == "group" else [0] * len(prompts)
            advantages = compared(rewards, groups, method.largest_advantage)
        return self._by_part(advantages)

    def _shares(self, iteration: int) -> list[list[int]]:
        """Numbers of parts by the update that they take part in."""
        order = torch.randperm(len(self._parts), generator=stream(self._seed, "order", iteration))
        return [share.tolist() for share in order.chunk(self._method.updates)]

    def _update(
        self,
        share: list[int],
        drawn: dict[int, Trajectories],
        advantages: list[torch.Tensor],
        gradients: GradientSum,
        unchanged: bool,
    ) -> tuple[float, float]:
        """Add the gradients of an update's pictures that are this worker's; what they add to mean KL and clipped share.

        Pictures that are neither better nor worse than others teach nothing, and are left out.

        Args:
            share: numbers of the update's parts, other workers' too.
            advantages: of all parts.
            unchanged: whether the policy is still the one that drew them.
        """
        pictures = sum(int(advantages[n].count_nonzero()) for n in share)
        kl, clipped = 0.0, 0.0
        for number in share:
            if number not in drawn:
                continue
            teaching = advantages[number] != 0
            chunk, own = drawn[number].part(teaching), advantages[number][teaching]
            if len(own):
                body = partial(self._gradients, drawn=chunk, advantages=own, pictures=pictures, unchanged=unchanged)
                sums = self._with_model(chunk.prompt, len(chunk), body)
                gradients.take()
                kl, clipped = kl + sums[0], clipped + sums[1]
        return kl, clipped

    def _near_images(self, iteration: int, number: int, gradients: GradientSum) -> float:
        """Add the gradient of the diffusion loss on a real image for each group; what this worker adds to its mean."""
        if self._images is None:
            return 0.0
        count, total = self._method.groups, 0.0
        for place in filter(self._team.makes, range(count)):
            generator = stream(self._seed, "image", iteration, number, place)
            prompt = int(torch.randint(len(self._task.prompts.texts), (1,), generator=generator))
            index = int(torch.randint(self._method.steps, (1,), generator=generator))
            added = noise([generator], self._task.latent_shape, torch.device("cpu"))
            weight = self._method.image_weight / count
            body = partial(learn_from_image, latents=self._images[prompt], noise=added, index=index, weight=weight)
            total += self._with_model(prompt, 1, body)
            gradients.take()
        return total / count

    def _gradients(
        self, run: Run, drawn: Trajectories, advantages: torch.Tensor, pictures: int, unchanged: bool
    ) -> tuple[float, float]:
        method, kl, clipped = self._method, 0.0, 0.0
        advantages = advantages.to(run.device)
        weight = 1.0 / (pictures * len(drawn.steps))
        for index, step in drawn.steps.items():
            with torch.enable_grad():
                ratio, divergence = self._compared_steps(run, index, step, unchanged)
                loss = clipped_policy_loss(ratio, advantages, method.clip_range) + method.kl_weight * divergence
                (loss.sum() * weight).backward()
            kl += float(divergence.detach().sum()) * weight
            clipped += float(((ratio.detach() - 1.0).abs() > method.clip_range).sum()) * weight
        return kl, clipped

    def _compared_steps(self, run: Run, index: int, drawn: Drawn, unchanged: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) each: density of what was drawn by that when it was drawn, and the distance to the base model."""
        x, device = drawn.x.to(run.device), run.device
        known = drawn.negative.to(device) if unchanged and not self._method.through_negative else None
        x0 = run.predict(x, index, known).x0
        now = stochastic_step(run.sampling, x, x0, run.sigmas, index, self._method.noise_level)
        ratio = (now.log_density(drawn.x_next.to(device)) - drawn.log_density.to(device)).exp()
        if drawn.base_mean is None:
            return ratio, torch.zeros_like(ratio)
        return ratio, now.divergence(drawn.base_mean.to(device))
