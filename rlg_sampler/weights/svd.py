"""The best approximation of a matrix by one of low rank: its leading singular vectors (Eckart and Young, 1936)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_EXACT_BELOW = 256  # smaller matrices are decomposed whole: it takes no time
_OVERSAMPLING = 16
_POWER_ITERATIONS = 4


@dataclass(frozen=True)
class Factors:
    """`up @ down` approximates a matrix.

    Attributes:
        down: shape (rank, columns).
        up: shape (rows, rank).
        energy: ‖matrix‖², the sum of its squared singular values.
        captured: the part of it that the approximation has, from 0 to 1; 1 − ‖matrix − up @ down‖² / ‖matrix‖².
    """

    down: torch.Tensor
    up: torch.Tensor
    energy: float
    captured: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def low_rank_factors(matrix: torch.Tensor, rank: int) -> Factors:
    """Factors of the given rank, or of the matrix's own where that is lower.

    Large matrices go through a randomised decomposition (Halko, Martinsson and Tropp, arXiv 0909.4061), seeded, so that
    the same matrix gives the same factors.

    Args:
        matrix: shape (rows, columns), float32, not all zero.
        rank: at least 1.
    """
    if matrix.device.type == "mps":  # which has no QR decomposition
        matrix = matrix.cpu()
    if min(matrix.shape) <= max(_EXACT_BELOW, 4 * rank):
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        devices = [matrix.device] if matrix.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            u, values, v = torch.svd_lowrank(matrix, q=rank + _OVERSAMPLING, niter=_POWER_ITERATIONS)
        vh = v.t()
    noise = values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    kept = min(rank, max(int((values > noise).sum()), 1))
    root = values[:kept].sqrt()
    energy = matrix.square().sum().item()
    captured = min(values[:kept].square().sum().item() / energy, 1.0)
    return Factors(root[:, None] * vh[:kept], u[:, :kept] * root, energy, captured)
