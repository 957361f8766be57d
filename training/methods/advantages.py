"""How much better than the others a picture is, which is what a policy gradient weighs it with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

ROUNDS = 8
"""Earlier iterations that B²-DiffuRL compares with (its `history_cnt`)."""
_THRESHOLD = 0.5
_SMALLEST_SPREAD = 1e-4
"""Flow-GRPO's, added to the spread: equal rewards are no reason to divide by zero. Pinterest's DDPO adds 1e-7."""


def compared(rewards: torch.Tensor, groups: Sequence[Hashable], largest: float) -> torch.Tensor:
    """Rewards above the mean of their group, in standard deviations of all rewards.

    As Flow-GRPO's PerPromptStatTracker with `global_std`; one group for all is DDPO's advantage.

    Args:
        rewards: (pictures,).
        groups: of each picture, such as its prompt.
        largest: advantages are cut off at ± this.

    Returns:
        (pictures,) float32.
    """
    values = rewards.double()
    above = torch.empty_like(values)
    for group in set(groups):
        own = torch.tensor([name == group for name in groups])
        # Above one of them first: of equal rewards, whatever they are, nothing is left.
        beyond = values[own] - values[own][0]
        above[own] = beyond - beyond.mean()
    return (above / (values.std(correction=0) + _SMALLEST_SPREAD)).clamp(-largest, largest).float()


def best_and_worst(
    rewards: torch.Tensor, prompts: torch.Tensor, earlier: torch.Tensor, branches: int, largest: float
) -> torch.Tensor:
    """B²-DiffuRL's selection (its run_select.py): the best and the worst of each branching, if they stand out.

    A reward is measured by the mean and the standard deviation of its prompt's rewards, earlier ones included.

    Args:
        rewards: (pictures,), branching after branching.
        prompts: (pictures,) numbers.
        earlier: (n, 2) prompt and reward of pictures of the latest rounds.
        branches: pictures per branching.
        largest: advantages are cut off at ± this.

    Returns:
        (pictures,) float32; 0 for pictures that are not selected.
    """
    scores = torch.empty_like(rewards, dtype=torch.float64)
    for prompt in prompts.unique():
        own = prompts == prompt
        known = torch.cat([earlier[earlier[:, 0] == prompt, 1], rewards[own].double()])
        scores[own] = (rewards[own].double() - known.mean()) / (known.std() + 1e-8)
    selected = torch.zeros_like(scores)
    for start in range(0, len(scores), branches):
        branching = scores[start : start + branches]
        best, worst = int(branching.argmax()), int(branching.argmin())
        if branching[best] >= _THRESHOLD:
            selected[start + best] = branching[best]
        if branching[worst] < -_THRESHOLD:
            selected[start + worst] = branching[worst]
    return selected.clamp(-largest, largest).float()
