"""Flow-GRPO's iteration as its research code makes it, on diffusers and PEFT; the pack's trainer is measured beside it.

After yifan123/flow_grpo, train_sd3.py: both sides of CFG in one batch, gradients through that batch with the negative
side cut off behind it, and the base model by a second pass with the adapter off, at the time of the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from evaluation.host import device

from .task import Task

CLIP_RANGE, KL_WEIGHT, NOISE_LEVEL = 1e-4, 0.04, 0.7


@dataclass(frozen=True)
class _Step:
    """A drawn step of some pictures."""

    x: torch.Tensor
    x_next: torch.Tensor
    log_density: torch.Tensor


class Reference:
    """Makes iterations.

    Args:
        model: with a trainable adapter.
        task: its prompts and sigmas; the shape of its noise is that of the pictures computed together.
        cfg: text guidance.
        learning_rate: of AdamW.
    """

    def __init__(self, model: PeftModel, task: Task, cfg: float, learning_rate: float) -> None:
        self._model, self._task, self._cfg = model, task.to(device()), cfg
        self._sigmas: list[float] = task.sigmas.tolist()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=learning_rate, weight_decay=1e-4)

    def iterate(self, groups: int, updates: int, score: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Draw a batch for each group, score the latents, and learn, a part of the groups per update."""
        drawn = [self._drawn() for _ in range(groups)]
        rewards = torch.stack([score(steps[-1].x_next) for steps in drawn])
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(correction=0) + 1e-4)
        for part in torch.randperm(groups).chunk(updates):
            for group in part.tolist():
                self._learn(drawn[group][:-1], advantages[group], len(part))
            torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()

    @torch.no_grad()
    def _drawn(self) -> list[_Step]:
        x, steps = torch.randn_like(self._task.noise), []
        for index in range(self._task.steps):
            mean, std, _ = self._gaussian(x, index)
            x_next = mean + std * torch.randn_like(x)
            steps.append(_Step(x, x_next, _log_density(x_next, mean, std)))
            x = x_next
        return steps

    def _learn(self, steps: Sequence[_Step], advantages: torch.Tensor, groups: int) -> None:
        for index, step in enumerate(steps):
            mean, std, spread = self._gaussian(step.x, index)
            with torch.no_grad(), self._model.disable_adapter():
                base, _, _ = self._gaussian(step.x, index)
            ratio = (_log_density(step.x_next, mean, std) - step.log_density).exp()
            clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
            policy = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
            kl = ((mean - base) ** 2).mean() / (2 * spread**2)
            ((policy + KL_WEIGHT * kl) / (len(steps) * groups)).backward()

    def _gaussian(self, x: torch.Tensor, index: int) -> tuple[torch.Tensor, float, float]:
        """Mean and std of the next latents, and the latter before its √−dt."""
        sigma, dt = self._sigmas[index], self._sigmas[index + 1] - self._sigmas[index]
        velocity = self._velocity(x, sigma)
        spread = NOISE_LEVEL * math.sqrt(sigma / (1 - min(sigma, self._sigmas[1])))
        drift = velocity + spread**2 / (2 * sigma) * (x + (1 - sigma) * velocity)
        return x + drift * dt, spread * math.sqrt(-dt), spread

    def _velocity(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        text, pooled = (
            torch.cat([side.expand(len(x), *side.shape[1:]) for side in sides])
            for sides in zip(self._task.negative, self._task.positive, strict=True)
        )
        negative, positive = self._model(
            hidden_states=torch.cat([x, x]),
            timestep=x.new_full((2 * len(x),), 1000 * sigma),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0].chunk(2)
        return negative.detach() + self._cfg * (positive - negative.detach())


def _log_density(x: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    return (-((x - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2).flatten(1).mean(dim=1)
