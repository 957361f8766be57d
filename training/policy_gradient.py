"""An iteration of a policy gradient: draw pictures, score them, and make more likely what made the good ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..rlg_sampler.stochastic.step import stochastic_step
from .advantages import ROUNDS, best_and_worst, compared
from .host_model import HostModel, Run
from .iteration import Learned, Report
from .losses import clipped_policy_loss
from .method import Plan, PolicyGradient
from .real_images import RealImages, diffusion_loss
from .rollout import Drawn, Pictures, Trajectories, chunks, draw
from .streams import noise, stream
from .task import Task

Result = TypeVar("Result")


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
        self._images = RealImages(task, method.name) if method.image_weight else None
        self._seen = torch.zeros(0, 3, dtype=torch.float64)
        """Of the latest rounds: iteration, prompt, reward."""

    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """Make an iteration.

        Args:
            iteration: its number; all that is random in it follows from that.
            step: takes an optimiser step with the gradients that there are, and returns their norm.
            report: told how far it is.
        """
        plan = self._method.plan(self._seed, iteration)
        drawn, rewards = self._rollouts(iteration, plan, report)
        advantages = self._advantages(iteration, drawn, rewards)
        seen = {"kl": 0.0, "clipped": 0.0, "diffusion": 0.0, "gradient": 0.0}
        shares = self._shares(iteration, drawn)
        for number, share in enumerate(shares):
            values = self._update([drawn[chunk] for chunk in share], [advantages[chunk] for chunk in share])
            values["diffusion"] = self._near_images(iteration, number)
            values["gradient"] = step()
            seen = {name: seen[name] + values[name] / len(shares) for name in seen}
            report(0.5 + 0.5 * (number + 1) / len(shares))
        return Learned(reward=float(rewards.mean()), spread=float(rewards.std(correction=0)), **seen)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What later iterations depend on."""
        return {"seen": self._seen}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._seen = tensors["seen"]

    def _rollouts(self, iteration: int, plan: Plan, report: Report) -> tuple[list[Trajectories], torch.Tensor]:
        method = self._method
        parts = chunks(method.groups, method.group_size, self._batch_size)
        prompts = self._task.prompts.chosen(self._seed, iteration, method.groups)
        drawn, rewards = [], []
        for number, (group, rows) in enumerate(parts):
            pictures = Pictures.of(self._seed, iteration, prompts[group], group, rows, self._task.latent_shape)
            drawn.append(self._with_model(pictures.prompt, len(rows), lambda run, p=pictures: self._draw(run, p, plan)))
            images = self._task.decoded(drawn[-1].end)
            rewards.append(self._task.scores(images, [pictures.prompt] * len(rows)))
            report(0.5 * (number + 1) / len(parts))
        return drawn, torch.cat(rewards)

    def _draw(self, run: Run, pictures: Pictures, plan: Plan) -> Trajectories:
        return draw(run, self._host.policy, pictures, plan, self._method.noise_level, self._method.kl_weight > 0)

    def _advantages(self, iteration: int, drawn: list[Trajectories], rewards: torch.Tensor) -> list[torch.Tensor]:
        method, prompts = self._method, [chunk.prompt for chunk in drawn for _ in range(len(chunk))]
        if method.compared_with == "branch":
            numbers = torch.tensor(prompts, dtype=torch.float64)
            latest = self._seen[self._seen[:, 0] >= iteration - ROUNDS]
            advantages = best_and_worst(rewards, numbers, latest[:, 1:], method.group_size, method.largest_advantage)
            own = torch.stack([torch.full_like(numbers, iteration), numbers, rewards.double()], dim=1)
            self._seen = torch.cat([latest, own])
        else:
            groups = prompts if method.compared_with == "group" else [0] * len(prompts)
            advantages = compared(rewards, groups, method.largest_advantage)
        return list(advantages.split([len(chunk) for chunk in drawn]))

    def _shares(self, iteration: int, drawn: list[Trajectories]) -> list[list[int]]:
        """Chunks by the update that they take part in."""
        order = torch.randperm(len(drawn), generator=stream(self._seed, "order", iteration))
        return [share.tolist() for share in order.chunk(self._method.updates)]

    def _update(self, drawn: list[Trajectories], advantages: list[torch.Tensor]) -> dict[str, float]:
        """Add the gradients of an update's pictures; their mean KL and clipped share."""
        if self._method.compared_with == "branch":
            chosen = [own != 0 for own in advantages]
            drawn = [chunk.part(rows) for chunk, rows in zip(drawn, chosen, strict=True)]
            advantages = [own[rows] for own, rows in zip(advantages, chosen, strict=True)]
        pictures, kl, clipped = sum(map(len, drawn)), 0.0, 0.0
        for chunk, own in zip(drawn, advantages, strict=True):
            if own.any() or (len(own) and self._method.kl_weight):
                sums = self._with_model(
                    chunk.prompt, len(chunk), lambda run, c=chunk, a=own: self._gradients(run, c, a, pictures)
                )
                kl, clipped = kl + sums[0], clipped + sums[1]
        return {"kl": kl, "clipped": clipped}

    def _near_images(self, iteration: int, number: int) -> float:
        """Add the gradient of the diffusion loss on a real image for each prompt of an iteration; its mean."""
        if self._images is None:
            return 0.0
        count, total = self._method.groups, 0.0
        for place in range(count):
            generator = stream(self._seed, "image", iteration, number, place)
            prompt = int(torch.randint(len(self._task.prompts.texts), (1,), generator=generator))
            index = int(torch.randint(self._method.steps, (1,), generator=generator))
            added = noise([generator], self._task.latent_shape, torch.device("cpu"))
            latents = self._images[prompt]
            total += self._with_model(prompt, 1, lambda run, x=latents, e=added, i=index: self._near(run, x, e, i))
        return total / count

    def _near(self, run: Run, latents: torch.Tensor, added: torch.Tensor, index: int) -> float:
        with torch.enable_grad():
            loss = diffusion_loss(run, latents.to(run.device), added.to(run.device), index).mean()
            (self._method.image_weight / self._method.groups * loss).backward()
        return float(loss.detach())

    def _gradients(self, run: Run, drawn: Trajectories, advantages: torch.Tensor, pictures: int) -> tuple[float, float]:
        method, kl, clipped = self._method, 0.0, 0.0
        advantages = advantages.to(run.device)
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
