"""An iteration of DiffusionNFT: what good pictures have that bad ones have not, learned where noise is added to them.

With x0 a drawn picture, x_t the same with noise, x̂_old what the policy that drew it predicts there and x̂ what the
trained one does, there are two policies beside it,

    x̂⁺ = (1 − β)·x̂_old + β·x̂,    x̂⁻ = (1 + β)·x̂_old − β·x̂
    loss = r·‖x̂⁺ − x0‖² + (1 − r)·‖x̂⁻ − x0‖²

so the better a picture (r, 0 … 1), the more is x̂ drawn to it, and away from it below ½. No density of a step is
needed: pictures are sampled without noise on the way, and any step of any model family can be learned from (arXiv
2509.16117, eq. 5; weights and constants as in NVlabs/DiffusionNFT scripts/train_nft_sd3.py).

Pictures that are computed together and all as good as their group's mean are left out, unless their distance to the
base model counts (kl_weight). As long as x̂ is x̂_old their gradient is 0; later the reference draws x̂ back to x̂_old
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from ..iteration import Learned, Report
from ..policy.gradients import training_mode
from ..policy.host_model import Run
from ..streams import noise
from .advantages import compared
from .gradient_sum import GradientSum
from .learner import Learner
from .losses import contrast_loss
from .rollout import Pictures
from .settings import ForwardProcess

Finished = tuple[Pictures, torch.Tensor]
"""Pictures that were drawn together, with their latents, (rows, channels, ...) as the model sees them, on the CPU."""


class ForwardLearner(Learner):
    """Makes the iterations of a method that learns on the forward process."""

    _method: ForwardProcess

    def _prepare(self) -> None:
        self._check_scores()
        with training_mode():
            self._old = {name: p.detach().clone() for name, p in self._host.policy.parameters.items()}
        """Of the policy that draws, which follows the trained one."""

    def iterate(self, iteration: int, step: Callable[[], float], report: Report) -> Learned:
        """See `Learner.iterate`."""
        with self._host.policy.with_values(self._old):
            drawn, scores = self._drawn(iteration, self._sampled, lambda finished: finished[1], report)
        advantages = self._advantages(iteration, self._task.sum.measured(scores))
        gradients, kl = GradientSum(self._host.policy.parameters.values()), 0.0
        for done, (number, (pictures, x0)) in enumerate(drawn.items(), 1):
            own = advantages[number]
            if own.any() or self._method.kl_weight:
                body = partial(self._gradients, clean=x0, advantages=own, pictures=pictures)
                kl += self._with_model(pictures.prompt, len(pictures.own), body)
                gradients.take()
            report(0.5 + 0.5 * done / len(drawn))
        kl = float(self._team.total(torch.tensor(kl, dtype=torch.float64)))
        gradients.give(self._team)
        norm = step()
        self._follow(iteration)
        return Learned.of(self._task.sum.weighed(scores), norm, kl)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Learner.tensors`."""
        return {f"old.{name}": tensor for name, tensor in self._old.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Learner.restore`."""
        for name, own in self._old.items():
            own.copy_(tensors[f"old.{name}"])

    def _sampled(self, pictures: Pictures) -> Finished:
        started = noise(pictures.own, pictures.shape, torch.device("cpu"))
        return pictures, self._with_model(pictures.prompt, len(started), lambda run: run.sampled(started).cpu())

    def _advantages(self, iteration: int, rewards: torch.Tensor) -> list[torch.Tensor]:
        """Of each part, those of its pictures."""
        return self._by_part(compared(rewards, self._prompts(iteration), self._method.largest_advantage))

    def _gradients(self, run: Run, clean: torch.Tensor, advantages: torch.Tensor, pictures: Pictures) -> float:
        """Add the gradients of some pictures; what they add to the mean distance to the base model."""
        method, clean, kl = self._method, clean.to(run.device), 0.0
        r = (0.5 + 0.5 * advantages / method.largest_advantage).to(run.device)
        levels = method.levels(pictures.common)
        weight = 1.0 / (method.groups * method.group_size * len(levels))
        for index in levels:
            x = run.start(noise(pictures.own, pictures.shape, run.device), clean, index)
            with self._host.policy.with_values(self._old):
                old = run.x0(x, index)
            base = self._base(run, x, index)
            with torch.enable_grad():
                x0 = run.x0(x, index)
                loss = method.largest_advantage / method.beta * contrast_loss(x0, old, clean, r, method.beta)
                distance = torch.zeros_like(loss) if base is None else _distance(x0, base, run.sigmas[index])
                ((loss + method.kl_weight * distance).sum() * weight).backward()
            kl += float(distance.detach().sum()) * weight
        return kl

    def _base(self, run: Run, x: torch.Tensor, index: int) -> torch.Tensor | None:
        """The base model's prediction; None where nothing asks for it."""
        if not self._method.kl_weight:
            return None
        with self._host.policy.disabled():
            return run.x0(x, index)

    def _follow(self, iteration: int) -> None:
        """Take the policy that draws nearer to the trained one."""
        kept = min(self._method.lag_growth * iteration, self._method.largest_lag)
        for name, parameter in self._host.policy.parameters.items():
            self._old[name].lerp_(parameter.detach(), 1.0 - kept)


def _distance(x0: torch.Tensor, base: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(rows,) mean squared difference of what two models say of the noise or the velocity, which x0 follows from."""
    return ((x0 - base) / sigma).square().flatten(1).mean(dim=1)
