"""Published methods as settings: where pictures start, which steps draw noise, which are trained, what is compared.

A policy gradient makes the drawn steps of good pictures more likely and those of bad ones less; it needs nothing of the
reward but its numbers. So does a contrast on the forward process, which learns from finished pictures with noise added.
A reward gradient goes from the score through the picture and the last predictions; it learns more from a picture, and
needs a reward that can be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..streams import stream


@dataclass(frozen=True)
class Plan:
    """What an iteration does with the steps 0 … n − 1 of its pictures.

    Attributes:
        fork: pictures of a group are one until this step; None where each starts from a noise of its own.
        noisy: steps that draw noise.
        trained: of these, the ones whose densities are trained.
    """

    fork: int | None
    noisy: tuple[int, ...]
    trained: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """What all methods are asked.

    Attributes:
        name, source: of the published method.
        steps: of sampling.
        cfg: text guidance, 1 = none.
        scheduler: of the host, for the sigmas.
        groups: prompts per iteration.
        group_size: pictures per prompt.
        average_decay: of the averaged LoRA, per update.
        through_negative: whether gradients pass through CFG's other side too; Flow-GRPO takes it for a constant.
    """

    name: str
    source: str
    steps: int = 10
    cfg: float = 1.0
    scheduler: str = "normal"
    groups: int = 4
    group_size: int = 1
    average_decay: float = 0.9 ** (1 / 8)
    through_negative: bool = False


@dataclass(frozen=True)
class PolicyGradient(Method):
    """A policy gradient over stochastic steps.

    Attributes:
        noise_level: a of flow models' SDE, η of DDIM.
        window: so many steps in a row draw noise and are trained, the others are Euler's; 0 = all draw noise. The
            pictures of a group have everything before the window in common.
        window_start: the steps a window may begin at: 0 … window_start.
        window_interval: iterations after which the window begins one step later, and after the last of these steps at 0
            again (MixGRPO, arXiv 2507.21802: 25 iterations, 4 of 25 steps); 0 = at a random one of them each time.
        tail: (first, last): so many of the last steps are trained, more from iteration to iteration, and the pictures
            of a group have everything before them in common; None trains any steps.
        stages: iterations in which `tail` goes from its first number to its last.
        trained_steps: so many of the noisy steps are trained, random ones; 0 = all. The last of all steps never is: its
            density is that of nearly no noise.
        compared_with: `group` (same prompt) or `batch` (all): a picture's reward less the mean of these, in standard
            deviations of the iteration; `branch`: the best and the worst of a group alone, in standard deviations over
            the prompt's latest 8 rounds, if they are beyond half a one.
        kl_weight: β, of the distance to the base model.
        image_weight: of the diffusion loss on the task's images, which there have to be; 0 asks for none.
        clip_range: of the density ratio, PPO's ε.
        largest_advantage: advantages are cut off there.
        updates: optimiser steps per iteration, each on its share of the pictures.
    """

    cfg: float = 4.5
    noise_level: float = 0.7
    group_size: int = 24
    window: int = 0
    window_start: int = 0
    window_interval: int = 0
    tail: tuple[int, int] | None = None
    stages: int = 100
    trained_steps: int = 0
    compared_with: Literal["group", "batch", "branch"] = "group"
    kl_weight: float = 0.04
    image_weight: float = 0.0
    clip_range: float = 1e-4
    largest_advantage: float = 5.0
    updates: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no iteration could be made with."""
        if self.compared_with != "batch" and self.group_size < 2:
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
        if self.tail and not 2 <= self.tail[0] <= self.tail[1] <= self.steps:
            raise ValueError(
                f"tail: the trained last steps go from {self.tail[0]} (first_tail) to {self.tail[1]} (last_tail), but "
                f"must be 2 to {self.steps} and not fall; change them or raise steps."
            )
        if self.tail and self.stages <= self.tail[1] - self.tail[0]:
            raise ValueError(
                f"stages: {self.stages} are too few to go from {self.tail[0]} (first_tail) to {self.tail[1]} "
                f"(last_tail) trained steps; use {self.tail[1] - self.tail[0] + 1} or more."
            )
        if self.noise_level <= 0.0:
            raise ValueError("noise_level: without noise nothing is explored; use a value above 0, such as 0.7.")
        if self.steps < 2:
            raise ValueError("steps: the last step is not trained, so there must be 2 or more.")

    def plan(self, seed: int, iteration: int) -> Plan:
        """What the given iteration of a run does."""
        generator = stream(seed, "plan", iteration)
        fork, noisy, first = None, tuple(range(self.steps)), 0
        if self.window:
            starts = self.window_start + 1
            if self.window_interval:
                fork = iteration // self.window_interval % starts
            else:
                fork = int(torch.randint(starts, (1,), generator=generator))
            first = fork
            noisy = noisy[fork : fork + self.window]
        elif self.tail:
            grown = (self.tail[1] - self.tail[0] + 1) * min(iteration, self.stages - 1) // self.stages
            fork = first = self.steps - self.tail[0] - grown
        trained = tuple(step for step in noisy if first <= step < self.steps - 1)
        if self.trained_steps:
            order = torch.randperm(len(trained), generator=generator)[: self.trained_steps]
            trained = tuple(sorted(trained[i] for i in order.tolist()))
        return Plan(fork, noisy, trained)


@dataclass(frozen=True)
class RewardGradient(Method):
    """A gradient of the reward through the last predictions.

    Pictures are sampled without gradient up to a step and on from there with it; what is scored is x0 as it is
    predicted at the last step with a gradient.

    Attributes:
        first_step, last_step: the step that gradients begin at is a random one of these.
        gradient_steps: so many predictions have a gradient.
        from_images: pictures start as the task's images, noised to `image_step`, in place of noise.
        image_weight: of the diffusion loss on these images, in that of the reward.
        image_step: see there.
        reward_weight: of the reward.
    """

    steps: int = 40
    first_step: int = 30
    last_step: int = 39
    gradient_steps: int = 1
    from_images: bool = False
    image_weight: float = 0.0
    image_step: int = 30
    reward_weight: float = 1e-3
    through_negative: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no iteration could be made with."""
        begin = self.image_step if self.from_images else 0
        if not begin <= self.first_step <= self.last_step <= self.steps - self.gradient_steps:
            raise ValueError(
                f"steps: gradients begin at step {self.first_step} to {self.last_step} and take {self.gradient_steps}, "
                f"which must lie between steps {begin} and {self.steps}; raise steps or lower the others."
            )
        if self.groups < 1 or self.group_size < 1 or self.gradient_steps < 1:
            raise ValueError("groups: without pictures or steps nothing is learned; use 1 or more.")

    @property
    def needs_images(self) -> bool:
        return self.from_images or self.image_weight > 0.0

    def step(self, seed: int, iteration: int, group: int) -> int:
        """Where the gradients of a group begin."""
        generator = stream(seed, "step", iteration, group)
        return int(torch.randint(self.first_step, self.last_step + 1, (1,), generator=generator))


@dataclass(frozen=True)
class DirectAlign(Method):
    """A gradient of the reward at any noise level, through a single prediction.

    A picture gets noise that is kept. After one step of the model from there the picture is recovered by taking the
    kept noise out again: x0 as predicted at much noise would be a blur, this is the picture with what the step changed.
    A step to less noise learns what the reward likes more under a wanted word than under an unwanted one; a step to
    more noise, whose change has the opposite sign, unlearns what it likes under the unwanted word. That takes the place
    of a distance to the base model.

    Attributes:
        from_images: the pictures are the task's images; nothing is sampled.
        start_percent, end_percent: noise levels that are trained, as the host's samplers count: 0 is noise alone.
        stride: length of a step, as a share of that range.
        wanted, unwanted: words put before the prompt for the reward, the next one each iteration.
        wanted_weight: how much more the wanted word counts than the unwanted one, in steps to less noise: at the least
            noise of the range and at the most.
        unwanted_weight: the same of the unwanted word, in steps to more noise.
    """

    steps: int = 25
    from_images: bool = False
    start_percent: float = 0.1
    end_percent: float = 0.5
    stride: float = 0.1
    wanted: tuple[str, ...] = ("Natural-lighting", "Detail", "Detailed", "Real")
    unwanted: tuple[str, ...] = ("Concept art", "Painting", "Anime", "Flat", "Oil")
    wanted_weight: tuple[float, float] = (0.1, 0.25)
    unwanted_weight: tuple[float, float] = (0.3, 0.01)
    through_negative: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no iteration could be made with."""
        if not 0.0 <= self.start_percent < self.end_percent <= 1.0:
            raise ValueError(
                f"start_percent: the trained noise levels go from {self.start_percent:g} to {self.end_percent:g}, but "
                "must rise within 0 to 1; change start_percent or end_percent."
            )
        for name, words in (("wanted", self.wanted), ("unwanted", self.unwanted)):
            if not words:
                raise ValueError(f"{name}: there is no word to put before the prompts; write one, or several with , .")
        if not 0.0 < self.stride <= 0.5:
            raise ValueError(f"stride: {self.stride:g} of the noise levels is no step; use a value above 0, up to 0.5.")
        if self.groups < 1 or self.group_size < 1:
            raise ValueError("groups: without pictures nothing is learned; use 1 or more.")

    @property
    def needs_images(self) -> bool:
        return self.from_images

    def levels(self, seed: int, iteration: int, group: int) -> tuple[float, float, float]:
        """Noise levels of a group, 0 = the least of the range to 1 = the most.

        Returns:
            Where the step to less noise begins, where both steps end, and where the step to more noise begins.
        """
        generator = stream(seed, "level", iteration, group)
        end = 0.005 + 0.99 * float(torch.rand((), generator=generator))
        stride = min(self.stride, end, 1.0 - end)
        return end + stride, end, end - stride

    def words(self, iteration: int) -> tuple[str, str]:
        """The wanted and the unwanted word of an iteration."""
        return self.wanted[iteration % len(self.wanted)], self.unwanted[iteration % len(self.unwanted)]


@dataclass(frozen=True)
class ForwardProcess(Method):
    """A contrast of good and bad pictures where noise is added to them.

    Pictures are sampled without noise on the way. Each is then noised to some of the sigmas it was sampled at, and the
    prediction there is drawn to the pictures above their group's mean and pushed away from those below.

    Attributes:
        trained_steps: noise levels that a picture is learned from, random ones; 0 = all it was sampled at.
        beta: how far the compared policies are from the one that drew; smaller learns faster and less steadily.
        kl_weight: of the distance to the base model.
        largest_advantage: advantages are cut off there; there a picture counts as wholly good or bad.
        lag_growth, largest_lag: the policy that draws keeps this share of its own weights after an iteration, more from
            iteration to iteration up to the second number.
    """

    group_size: int = 24
    trained_steps: int = 0
    beta: float = 1.0
    kl_weight: float = 1e-4
    largest_advantage: float = 5.0
    lag_growth: float = 1e-3
    largest_lag: float = 0.5
    average_decay: float = 0.9
    through_negative: ClassVar[bool] = False
    """No setting here: its authors train without CFG."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no iteration could be made with."""
        if self.group_size < 2:
            raise ValueError(
                f"group_size: {self.group_size} picture per prompt has none to be compared with; use 2 or more."
            )
        if self.groups < 1:
            raise ValueError("groups: without pictures nothing is learned; use 1 or more.")
        if self.steps < 1:
            raise ValueError("steps: pictures cannot be sampled without a step; use 1 or more.")
        if not 0 <= self.trained_steps <= self.steps:
            raise ValueError(
                f"trained_steps: {self.trained_steps} of {self.steps} noise levels cannot be trained; use 0 (all) to "
                f"{self.steps}, or raise steps."
            )
        if self.beta <= 0.0:
            raise ValueError(f"beta: {self.beta:g} compares the policy with itself; use a value above 0, such as 1.")
        if self.largest_advantage <= 0.0:
            raise ValueError(
                f"largest_advantage: {self.largest_advantage:g} leaves no picture better than another; use a value "
                "above 0, such as 5."
            )

    def levels(self, generator: torch.Generator) -> list[int]:
        """Steps whose noise some pictures are learned from."""
        return torch.randperm(self.steps, generator=generator)[: self.trained_steps or self.steps].tolist()
