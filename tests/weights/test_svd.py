"""Low-rank factors keep what the theory of singular values says they keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from without_host import svd


def _with_values(values: list[float], rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values, built from two random orthonormal bases."""
    generator = torch.Generator().manual_seed(seed)

    def basis(size: int) -> torch.Tensor:
        noise = torch.randn(size, len(values), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(noise).Q

    return ((basis(rows) * torch.tensor(values, dtype=torch.float64)) @ basis(columns).t()).float()


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6),
    rank=st.integers(1, 8),
    rows=st.integers(6, 20),
    columns=st.integers(6, 20),
)
def test_captured_energy_is_that_of_the_leading_values(values, rank, rows, columns) -> None:
    matrix = _with_values(values, rows, columns)
    factors = svd.low_rank_factors(matrix, rank)
    squares = sorted((value**2 for value in values), reverse=True)
    assert factors.energy == pytest.approx(sum(squares), rel=1e-4)
    assert factors.captured == pytest.approx(sum(squares[:rank]) / sum(squares), rel=1e-4)
    missed = (matrix - factors.up @ factors.down).square().sum().item()
    assert missed == pytest.approx(sum(squares[rank:]), rel=1e-3, abs=1e-5 * sum(squares))
    assert factors.rank == min(rank, len(values))


@pytest.mark.parametrize("shape", [(40, 30), (300, 500)], ids=["decomposed whole", "randomised"])
def test_rank_of_the_matrix_or_more_is_exact(shape) -> None:
    matrix = _with_values([9.0, 4.0, 1.0], *shape)
    for rank in (3, 7):
        factors = svd.low_rank_factors(matrix, rank)
        assert factors.captured == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(factors.up @ factors.down, matrix, rtol=1e-4, atol=1e-6)


def test_randomised_factors_are_near_the_best_and_always_the_same() -> None:
    """A slowly falling spectrum is the hard case for a randomised decomposition."""
    values = [1.0 / (1 + i) ** 0.5 for i in range(290)]
    matrix = _with_values(values, 300, 400)
    state = torch.get_rng_state()
    factors, again = (svd.low_rank_factors(matrix, 8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state), "a run's noise must not depend on it"
    assert torch.equal(factors.up, again.up) and torch.equal(factors.down, again.down)
    best = sum(v**2 for v in values[:8]) / sum(v**2 for v in values)
    assert best - 0.01 < factors.captured <= best + 1e-5
    missed = (matrix - factors.up @ factors.down).square().sum().item() / factors.energy
    assert missed == pytest.approx(1 - factors.captured, abs=1e-4)
