"""The formula against theory: no model, no host."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from without_host import mixing, schedule

DIM = 3


def _covariance(seed: int) -> torch.Tensor:
    root = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.2 * torch.eye(DIM, dtype=torch.float64)


def _denoiser(mean: torch.Tensor, cov: torch.Tensor):
    """E[x0 | x] for x = (1−σ)·x0 + σ·ε with x0 ~ N(mean, cov)."""

    def x0(x: torch.Tensor, sigma: float) -> torch.Tensor:
        marginal = (1 - sigma) ** 2 * cov + sigma**2 * torch.eye(DIM, dtype=torch.float64)
        gain = (1 - sigma) * cov @ torch.linalg.inv(marginal)
        return mean + (x - (1 - sigma) * mean) @ gain.T

    return x0


def _sample(x0, x: torch.Tensor, steps: int = 400) -> torch.Tensor:
    """Heun's method on dx/dσ = (x − x0)/σ from pure noise (σ = 1) to data (σ = 0)."""
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    for sigma, to in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - x0(x, sigma)) / sigma
        moved = x + (to - sigma) * slope
        if to > 0:
            slope = (slope + (moved - x0(moved, to)) / to) / 2
            moved = x + (to - sigma) * slope
        x = moved
    return x


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 1.6, 4.0])
def test_sampler_draws_from_the_geometric_average(scale: float) -> None:
    """p_base^(1−s) · p_tuned^s of two Gaussians with one covariance is N((1−s)·m_b + s·m_t, C), for every s."""
    cov = _covariance(1)
    means = torch.tensor([[1.0, -2.0, 0.5], [2.5, 1.0, -1.0]], dtype=torch.float64)
    base, tuned = (_denoiser(mean, cov) for mean in means)
    # The flow of a linear denoiser is affine: the images of 0 and of the unit vectors give it whole.
    start = torch.cat([torch.zeros(1, DIM), torch.eye(DIM)]).double()
    end = _sample(lambda x, sigma: mixing.mix(base(x, sigma), [tuned(x, sigma)], [scale]), start)
    mean, matrix = end[0], (end[1:] - end[0]).T
    torch.testing.assert_close(mean, means[0] + scale * (means[1] - means[0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, cov, atol=1e-3, rtol=0)


@given(
    scales=st.lists(st.floats(-10, 10), min_size=1, max_size=3),
    sigma=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_mix_of_x0_is_the_mix_of_scores(scales: list[float], sigma: float, seed: int) -> None:
    """Tweedie: score = ((1−σ)·x0 − x)/σ². Mixing x0 must mix scores, whatever the two distributions are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, DIM, generator=generator, dtype=torch.float64)
    models = [(torch.randn(DIM, generator=generator, dtype=torch.float64), _covariance(seed + i)) for i in range(4)]

    def score(mean: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
        marginal = (1 - sigma) ** 2 * cov + sigma**2 * torch.eye(DIM, dtype=torch.float64)
        return -(x - (1 - sigma) * mean) @ torch.linalg.inv(marginal).T

    tuned = models[1 : 1 + len(scales)]
    mixed = mixing.mix(_denoiser(*models[0])(x, sigma), [_denoiser(*m)(x, sigma) for m in tuned], scales)
    expected = score(*models[0]) + sum(s * (score(*m) - score(*models[0])) for s, m in zip(scales, tuned, strict=True))
    torch.testing.assert_close(((1 - sigma) * mixed - x) / sigma**2, expected, atol=1e-6, rtol=1e-6)


def test_tuned_model_alone_needs_no_base() -> None:
    x0 = torch.randn(2, DIM)
    assert mixing.base_coefficient([1.0]) == 0.0
    assert torch.equal(mixing.mix(None, [x0], [1.0]), x0)


@given(st.floats(-10, 10))
def test_scales_in_range_pass_unchanged(scale: float) -> None:
    assert schedule.check_scale(scale) == scale


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 10.5, -11.0])
def test_other_scales_are_refused_by_name(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^scale: .* cannot be used; give a number from -10 to 10"):
        schedule.check_scale(scale)
