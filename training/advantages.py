"""How much better than the others a picture is, which is what a policy gradient weighs it with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

_SMALLEST_SPREAD = 1e-4
"""Flow-GRPO's and DDPO's, added to the spread: equal rewards are no reason to divide by zero."""


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
        above[own] = values[own] - values[own].mean()
    return (above / (values.std(correction=0) + _SMALLEST_SPREAD)).clamp(-largest, largest).float()
