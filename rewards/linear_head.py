"""The head that LAION's aesthetic predictor and, after it, ImageReward put on an embedding."""

from __future__ import annotations

from torch import nn


class LinearHead(nn.Module):
    """One number of a vector, under the published names. The dropouts between its layers act in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Identity(),
            nn.Linear(1024, 128),
            nn.Identity(),
            nn.Linear(128, 64),
            nn.Identity(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
