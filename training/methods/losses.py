"""What is minimised, as formulas."""

from __future__ import annotations

import torch

_SMALLEST_ERROR = 1e-5


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


def contrast_loss(
    x0: torch.Tensor, old: torch.Tensor, clean: torch.Tensor, r: torch.Tensor, beta: float
) -> torch.Tensor:
    """DiffusionNFT's: good pictures draw the prediction towards them, bad ones push it away (arXiv 2509.16117, eq. 5).

    Each square is divided by its own mean error, as in the reference (train_nft_sd3.py), so that all noise levels count
    alike.

    Args:
        x0: predicted by the trained policy, (batch, channels, ...).
        old: by the policy that drew the picture, a constant.
        clean: the picture.
        r: (batch,) how good it is, 0 … 1.
        beta: how far the two compared policies are from the old one, in differences of the trained one.

    Returns:
        (batch,).
    """
    # As a difference: equal policies are then compared with the very same picture, and teach nothing.
    better, worse = (_normalised_error(old + own * (x0 - old), clean) for own in (beta, -beta))
    return r * better + (1.0 - r) * worse


def _normalised_error(predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    error = (predicted - clean).flatten(1)
    size = error.detach().abs().mean(dim=1).clamp(min=_SMALLEST_ERROR)
    return error.square().mean(dim=1) / size
