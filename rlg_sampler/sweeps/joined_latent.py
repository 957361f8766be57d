"""What several sampling runs from one latent give as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def as_one_latent(latent: dict[str, Any], samples: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The latent of all runs, a run's pictures next to each other.

    Args:
        latent: what every run started from.
        samples: of each run, shape (batch, channels, ...).
    """
    out = {**latent, "samples": torch.cat(list(samples))}
    if "batch_index" in latent:
        out["batch_index"] = list(latent["batch_index"]) * len(samples)
    if "noise_mask" in latent and latent["noise_mask"].shape[0] > 1:
        out["noise_mask"] = torch.cat([latent["noise_mask"]] * len(samples))
    return out
