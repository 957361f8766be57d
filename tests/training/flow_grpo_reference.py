"""Flow-GRPO's update as its research code does it, on diffusers and PEFT: the independent side of the tests.

Nothing here comes from the host or from the extension. Written after yifan123/flow_grpo: `sde_step_with_logprob` of
sd3_sde_with_logprob.py, `PerPromptStatTracker.update` with global_std, and the loss of train_sd3.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

import diffusers_rlg
from demo.tiny_model import TinySD3


class Iteration:
    """The gradients of one update.

    Args:
        checkpoint, adapter: of the base model, and the PEFT folder of the policy.
        steps, cfg, noise_level: of sampling.

    Attributes:
        densities: for each chunk of pictures, (steps, rows) log densities.
        kl: before its weight.
        gradients: of the LoRA's matrices, by the trainer's names.
    """

    def __init__(self, checkpoint: Path, adapter: Path, *, steps: int, cfg: float, noise_level: float) -> None:
        self._model = diffusers_rlg.load(checkpoint, adapter, TinySD3(), trainable=True)
        self._flow, self._cfg, self._noise_level = diffusers_rlg.scheduler(steps), cfg, noise_level
        self.densities: list[torch.Tensor] = []
        self.kl = 0.0
        self.gradients: dict[str, torch.Tensor] = {}

    def learn(
        self, drawn: Sequence[Any], rewards: torch.Tensor, prompts: Any, *, kl_weight: float, clip_range: float
    ) -> None:
        """Take the gradient of the loss: mean over steps and pictures, without those whose advantage is 0."""
        names = [chunk.prompt for chunk in drawn for _ in range(len(chunk))]
        advantages = _advantages(np.array(names), rewards.double().numpy())
        losses, kls = [], []
        for number, chunk in enumerate(drawn):
            own = advantages[number * len(chunk) : (number + 1) * len(chunk)]
            text = _text(prompts.positive[chunk.prompt], len(chunk)), _text(prompts.negative, len(chunk))
            densities = []
            for index, step in chunk.steps.items():
                log_density, mean, spread = self._step(step.x, step.x_next, index, *text)
                with torch.no_grad(), self._model.disable_adapter():
                    _, base_mean, _ = self._step(step.x, step.x_next, index, *text)
                ratio = torch.exp(log_density - log_density.detach())
                clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
                losses.append(torch.maximum(-own * ratio, -own * clipped)[own != 0])
                kls.append((((mean - base_mean) ** 2).mean(dim=(1, 2, 3)) / (2 * spread**2))[own != 0])
                densities.append(log_density.detach())
            self.densities.append(torch.stack(densities))
        kl = torch.cat(kls).mean()
        (torch.cat(losses).mean() + kl_weight * kl).backward()
        self.kl = kl.item()
        self.gradients = dict(_named_gradients(self._model))

    def _step(
        self,
        x: torch.Tensor,
        x_next: torch.Tensor,
        index: int,
        positive: diffusers_rlg.Text,
        negative: diffusers_rlg.Text,
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        velocity = self._velocity(x, index, positive, negative)
        sigma, sigma_next = self._flow.sigmas[index].item(), self._flow.sigmas[index + 1].item()
        dt = sigma_next - sigma
        spread = math.sqrt(sigma / (1 - (self._flow.sigmas[1].item() if sigma == 1 else sigma))) * self._noise_level
        mean = x * (1 + spread**2 / (2 * sigma) * dt) + velocity * (1 + spread**2 * (1 - sigma) / (2 * sigma)) * dt
        std = spread * math.sqrt(-dt)
        log_density = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))
        return log_density.mean(dim=(1, 2, 3)), mean, spread

    def _velocity(
        self, x: torch.Tensor, index: int, positive: diffusers_rlg.Text, negative: diffusers_rlg.Text
    ) -> torch.Tensor:
        uncond, cond = diffusers_rlg.velocity(self._model, x, self._flow.timesteps[index], negative, positive).chunk(2)
        return uncond.detach() + self._cfg * (cond - uncond.detach())


def _advantages(prompts: np.ndarray, rewards: np.ndarray) -> torch.Tensor:
    advantages = np.empty_like(rewards)
    for prompt in np.unique(prompts):
        own = rewards[prompts == prompt]
        advantages[prompts == prompt] = (own - own.mean()) / (rewards.std() + 1e-4)
    return torch.tensor(advantages).clamp(-5, 5).float()


def _text(conditioning: list, rows: int) -> diffusers_rlg.Text:
    ((tokens, extra),) = conditioning
    return diffusers_rlg.Text(tokens.clone().expand(rows, -1, -1), extra["pooled_output"].clone().expand(rows, -1))


def _named_gradients(model: PeftModel) -> Any:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module, side = name.removeprefix("base_model.model.").removesuffix(".default.weight").rsplit(".", 1)
            yield f"{module}.{'down' if side == 'lora_A' else 'up'}", parameter.grad
