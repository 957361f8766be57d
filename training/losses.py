"""What is minimised, as formulas."""

from __future__ import annotations

import torch


def clipped_policy_loss(ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> torch.Tensor:
    """PPO's clipped objective, negated (arXiv 1707.06347, eq. 7): moving past the clip range wins nothing.

    Args:
        ratio: (batch,) density of what was drawn under the policy now, by that when it was drawn.
        advantages: (batch,).
        clip_range: ε.

    Returns:
        (batch,).
    """
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)
