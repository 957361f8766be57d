"""Published methods as settings: where pictures start, which steps draw noise, which are trained, what is compared.

A method is one of two gradients. The policy gradient (here) makes the drawn steps of good pictures more likely and
those of bad ones less; it needs nothing of the reward but its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from .streams import stream


@dataclass(frozen=True)
class Plan:
    """What an iteration does with the steps 0 … n − 1 of its pictures.

    Attributes:
        fork: pictures of a group are one until this step; at 0 each has a noise of its own from the start.
        noisy: steps that draw noise.
        trained: of these, the ones whose densities are trained.
    """

    fork: int
    noisy: tuple[int, ...]
    trained: tuple[int, ...]


@dataclass(frozen=True)
class PolicyGradient:
    """A policy gradient over stochastic steps.

    Attributes:
        name, source: of the published method.
        steps: of sampling.
        cfg: text guidance, 1 = none.
        scheduler: of the host, for the sigmas.
        noise_level: a of flow models' SDE, η of DDIM.
        groups: prompts per iteration.
        group_size: pictures per prompt.
        window: so many steps in a row draw noise and are trained, the others are Euler's; 0 = all draw noise. The
            pictures of a group have everything before the window in common.
        window_start: the steps a window may begin at: a random one of 0 … window_start.
        trained_steps: so many of the noisy steps are trained, random ones; 0 = all but the last of all, as in the
            reference, whose density is that of nearly no noise.
        compared_with: the pictures whose mean reward is taken off, `group` (same prompt) or `batch` (all). The spread
            is that of all pictures of the iteration in either case.
        kl_weight: β, of the distance to the base model.
        clip_range: of the density ratio, PPO's ε.
        largest_advantage: advantages are cut off there.
        updates: optimiser steps per iteration, each on its share of the pictures.
        average_decay: of the averaged LoRA, per update.
    """

    name: str
    source: str
    steps: int = 10
    cfg: float = 4.5
    scheduler: str = "normal"
    noise_level: float = 0.7
    groups: int = 4
    group_size: int = 24
    window: int = 0
    window_start: int = 0
    trained_steps: int = 0
    compared_with: Literal["group", "batch"] = "group"
    kl_weight: float = 0.04
    clip_range: float = 1e-4
    largest_advantage: float = 5.0
    updates: int = 2
    average_decay: float = 0.9 ** (1 / 8)

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no iteration could be made with."""
        if self.compared_with == "group" and self.group_size < 2:
            raise ValueError(
                f"group_size: {self.group_size} picture per prompt has none to be compared with; use 2 or more."
            )
        if self.groups * self.group_size < 2:
            raise ValueError("groups: one picture per iteration has none to be compared with; use more.")
        if self.window and self.window + self.window_start >= self.steps:
            raise ValueError(
                f"window: {self.window} steps from step {self.window_start} on do not fit before the last of "
                f"{self.steps} steps, which is not trained; raise steps or lower one of them."
            )
        if self.noise_level <= 0.0:
            raise ValueError("noise_level: without noise nothing is explored; use a value above 0, such as 0.7.")
        if self.steps < 2:
            raise ValueError("steps: the last step is not trained, so there must be 2 or more.")

    def plan(self, seed: int, iteration: int) -> Plan:
        """What the given iteration of a run does."""
        generator = stream(seed, "plan", iteration)
        fork, noisy = 0, tuple(range(self.steps))
        if self.window:
            fork = int(torch.randint(self.window_start + 1, (1,), generator=generator))
            noisy = noisy[fork : fork + self.window]
        trained = tuple(step for step in noisy if step < self.steps - 1)
        if self.trained_steps:
            order = torch.randperm(len(trained), generator=generator)[: self.trained_steps]
            trained = tuple(sorted(trained[i] for i in order.tolist()))
        return Plan(fork, noisy, trained)


Method = PolicyGradient

FLOW_GRPO = PolicyGradient("Flow-GRPO", "arXiv 2505.05470, yifan123/flow_grpo config/grpo.py")
"""As its authors train SD3.5 medium, with 4 prompts per iteration in place of 48 on their 32 GPUs, and an average that
is updated each time in place of each eighth time."""

FLOW_GRPO_FAST = replace(FLOW_GRPO, name="Flow-GRPO-Fast", window=2, window_start=4)
"""Its faster version: two random noisy steps in the first half, the rest without noise."""
