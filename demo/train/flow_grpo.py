"""Flow-GRPO (arXiv 2505.05470) in small: reinforcement learning of a flow model's LoRA from a reward on its pictures.

One iteration samples groups of pictures, a group per prompt, with noise injected at every step, so that each step is a
Gaussian policy with a known density. Pictures better than their group's mean become more likely and worse ones less,
with the clipped ratio of PPO and a penalty on the distance to the base model. As in the reference (yifan123/flow_grpo:
train_sd3.py and sd3_sde_with_logprob.py), but only some of the steps of each trajectory are trained on, and there
is no CFG: the tuned model is to do without. Noise may be injected in the first steps alone, where it is decided what
the picture shows, as in MixGRPO (arXiv 2507.21802, with a window that stays).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch._dynamo import OptimizedModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from demo.scenes import Prompt
from demo.tiny_encoders import LATENT_CHANNELS
from demo.tiny_model import LORA_TARGETS
from demo.train.base import LATENT_SIDE, SHIFT, compiled, velocity
from demo.train.loop import train
from demo.train.text import Text

RANK, ALPHA = 16, 32
SAMPLING_STEPS, TRAINED_STEPS = 10, 5
NOISE_LEVEL = 0.7
PROMPTS, GROUP = 6, 12
UPDATES = 2
"""Optimiser steps per iteration, each on its share of the pictures."""
CLIP_RANGE = 1e-3
"""Ten times the reference's: here rounding to bfloat16 alone moves the ratio by 1e-4."""
LARGEST_ADVANTAGE = 5.0
EMA = 0.95
"""Per iteration. The LoRA that is kept is a moving average, as in the reference: a scale above 1 also amplifies what
the last few groups of pictures happened to say."""

Reward = Callable[[np.ndarray, Prompt], float]
"""Picture (height, width, 3) uint8 and what it should show → higher is better."""


@dataclass(frozen=True)
class Task:
    """What one LoRA is trained for."""

    name: str
    reward: Reward
    iterations: int
    kl_weight: float
    learning_rate: float
    noisy_steps: int
    """Noise is injected in so many of the first SAMPLING_STEPS, and only these are trained on."""


@dataclass(frozen=True)
class Step:
    """The Gaussian policy of one sampling step: x at σ → x at the next σ."""

    mean: Tensor
    std: float
    diffusion: float
    """`std` per square root of time."""

    def log_density(self, x: Tensor) -> Tensor:
        """(batch,) mean over the latent's values, up to a constant."""
        return -((x - self.mean) ** 2 / (2 * self.std**2)).mean(dim=(1, 2, 3))


def sde_step(x: Tensor, predicted: Tensor, sigmas: Tensor, index: int) -> Step:
    """The reverse SDE of the flow with the same marginals as its ODE (Flow-GRPO, eq. 9).

    Args:
        x: latents at `sigmas[index]`, (batch, 16, height, width).
        predicted: velocity ε − x0 at x.
        sigmas: from 1 to 0.
        index: of the step.
    """
    sigma, change = float(sigmas[index]), float(sigmas[index + 1] - sigmas[index])
    # At σ = 1 the noise would be infinite; the reference takes the next σ there.
    diffusion = NOISE_LEVEL * (sigma / (1 - min(sigma, float(sigmas[1])))) ** 0.5
    towards = diffusion**2 / (2 * sigma)
    mean = x * (1 + towards * change) + predicted * (1 + towards * (1 - sigma)) * change
    return Step(mean, diffusion * (-change) ** 0.5, diffusion)


def train_lora(
    task: Task,
    base: SD3Transformer2DModel,
    vae: AutoencoderTiny,
    prompts: Sequence[Prompt],
    text: Text,
    folder: Path,
    seed: int,
) -> tuple[PeftModel, list[dict[str, float]]]:
    """Train a LoRA on `base` (which it changes in place), or go on, with a checkpoint in `folder`.

    `text` encodes the prompts in their order. Returns the model with the moving average of the LoRA, and the reward
    curve of the LoRA itself.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS))
    model = get_peft_model(base, config)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    network = compiled(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task.learning_rate, weight_decay=1e-4)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(SAMPLING_STEPS)
    sigmas = scheduler.sigmas

    def iterate(index: int, generator: torch.Generator) -> dict[str, float]:
        chosen = torch.randperm(len(prompts), generator=generator)[:PROMPTS].repeat_interleave(GROUP)
        conds = text.rows(chosen)
        path, densities = sample(network, conds, sigmas, task.noisy_steps, generator)
        rewards = torch.tensor(
            [task.reward(picture, prompts[i]) for picture, i in zip(decode(vae, path[-1]), chosen, strict=True)]
        )
        advantages = group_advantages(rewards)

        order = torch.randperm(len(chosen), generator=generator)
        steps = torch.randperm(task.noisy_steps, generator=generator)[:TRAINED_STEPS].tolist()
        kl = clipped = 0.0
        for rows in order.chunk(UPDATES):
            optimizer.zero_grad()
            for step in steps:
                now, then = policies(network, path[step][rows], conds.rows(rows), sigmas, step)
                ratio = (now.log_density(path[step + 1][rows]) - densities[step][rows]).exp()
                gain = clipped_gain(ratio, advantages[rows])
                divergence = ((now.mean - then.mean) ** 2).mean() / (2 * now.diffusion**2)
                ((task.kl_weight * divergence - gain) / len(steps)).backward()
                kl += float(divergence.detach()) / len(steps) / UPDATES
                clipped += float(((ratio - 1).abs() > CLIP_RANGE).float().mean()) / len(steps) / UPDATES
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        average.update_parameters(model)
        return {"reward": float(rewards.mean()), "spread": float(rewards.std()), "kl": kl, "clipped": clipped}

    state = {"model": model, "average": average, "optimizer": optimizer}
    history = train(folder / f"{task.name}_{seed}.ckpt", task.iterations, seed, state, iterate)
    return average.module.eval(), history


def group_advantages(rewards: Tensor) -> Tensor:
    """How much better than its group's mean each picture is, in standard deviations of the whole batch.

    `rewards`: (PROMPTS · GROUP,), group after group.
    """
    groups = rewards.reshape(-1, GROUP)
    advantages = (groups - groups.mean(dim=1, keepdim=True)) / (rewards.std() + 1e-4)
    return advantages.flatten().clamp(-LARGEST_ADVANTAGE, LARGEST_ADVANTAGE)


@torch.no_grad()
def sample(
    model: torch.nn.Module, conds: Text, sigmas: Tensor, noisy_steps: int, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Latents before the first and after every step, one row per cond, and the log density of each noisy step."""
    shape = (len(conds.pooled), LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    path, densities = [torch.randn(shape, generator=generator)], []
    for index in range(noisy_steps):
        step = _policy(model, path[-1], conds, sigmas, index)
        path.append(step.mean + step.std * torch.randn(shape, generator=generator))
        densities.append(step.log_density(path[-1]))
    for index in range(noisy_steps, len(sigmas) - 1):
        predicted = velocity(model, path[-1], sigmas[index].expand(len(path[-1])), conds)
        path.append(path[-1] + (sigmas[index + 1] - sigmas[index]) * predicted)
    return path, densities


def policies(
    model: PeftModel | OptimizedModule, x: Tensor, conds: Text, sigmas: Tensor, index: int
) -> tuple[Step, Step]:
    """The step as the model takes it now, with gradient, and as the base model does."""
    tuned = _policy(model, x, conds, sigmas, index)
    with torch.no_grad(), model.disable_adapter():
        return tuned, _policy(model, x, conds, sigmas, index)


def _policy(model: torch.nn.Module, x: Tensor, conds: Text, sigmas: Tensor, index: int) -> Step:
    return sde_step(x, velocity(model, x, sigmas[index].expand(len(x)), conds), sigmas, index)


def clipped_gain(ratio: Tensor, advantages: Tensor) -> Tensor:
    """PPO's objective, to be raised: nothing is won by moving further than the clip range."""
    clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
    return torch.minimum(advantages * ratio, advantages * clipped).mean()


@torch.inference_mode()
def decode(vae: AutoencoderTiny, latents: Tensor) -> np.ndarray:
    """(batch, height, width, 3) uint8."""
    with torch.autocast("cpu", torch.bfloat16):
        decoded = vae.decoder(latents.to(memory_format=torch.channels_last))
    return ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
