"""The Gaussian of a stochastic step, against the formulas of the papers' reference code in their own terms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import comfy.model_sampling
import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from pairs import CLOSE, FAMILIES, relative

ROWS = (3, 4, 8, 8)


@pytest.fixture(scope="module")
def step(rlg: SimpleNamespace) -> Any:
    return rlg.module("rlg_sampler.stochastic.step")


def _randn(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_the_reference_s(step, eta) -> None:
    """kvablack/ddpo-pytorch's ddim_step_with_logprob: DDIM's own latents, alphas, mean over the latent's values."""
    ddim = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    alpha, alpha_next = ddim.alphas_cumprod[601], ddim.alphas_cumprod[551]
    x, epsilon, x_next = _randn(0), _randn(1), _randn(2)
    x0 = (x - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
    std = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).sqrt()
    mean = alpha_next.sqrt() * x0 + (1 - alpha_next - std**2).sqrt() * epsilon
    density = -((x_next - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    density = density.mean(dim=(1, 2, 3))

    sigmas = torch.stack([((1 - a) / a).sqrt() for a in (alpha, alpha_next)])
    size = (1 + sigmas**2).sqrt()  # the host's latents are DDIM's times this
    ours = step.stochastic_step(comfy.model_sampling.EPS(), x * size[0], x0, sigmas, 0, eta)
    assert relative(ours.mean / size[1], mean) < CLOSE
    assert float(ours.std / size[1]) == pytest.approx(float(std), rel=1e-5)
    assert relative(ours.log_density(x_next * size[1]) + size[1].log(), density) < CLOSE


def test_the_distance_of_two_ddim_steps_is_their_kl_divergence(step) -> None:
    """torch's, of the two Gaussians: per picture, as a mean over its values."""
    x, sigmas = _randn(0), torch.tensor([3.0, 2.0])
    one, other = (step.stochastic_step(comfy.model_sampling.EPS(), x, _randn(n), sigmas, 0, 0.7) for n in (1, 2))
    gaussians = (Normal(each.mean, each.std) for each in (one, other))
    expected = kl_divergence(*gaussians).mean(dim=(1, 2, 3))
    assert relative(one.divergence(other.mean), expected) < CLOSE


def test_the_last_step_of_ddim_draws_nothing(step) -> None:
    x, x0, sigmas = _randn(0), _randn(1), torch.tensor([0.5, 0.0])
    last = step.stochastic_step(comfy.model_sampling.EPS(), x, x0, sigmas, 0, 1.0)
    assert torch.equal(last.drawn(_randn(2)), last.mean) and relative(last.mean, x0) < CLOSE


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_its_own(step, name) -> None:
    sampling = FAMILIES[name].load().get_model_object("model_sampling")
    sigmas = torch.tensor([0.9, 0.5, 0.1])
    x, x0 = _randn(0), _randn(1)
    kind = step.ddim_step if name.startswith("SD") else step.flow_step
    own = step.stochastic_step(sampling, x, x0, sigmas, 0, 0.7)
    assert torch.equal(own.mean, kind(x, x0, sigmas, 0, 0.7).mean)


@pytest.mark.parametrize("shift", [1.43, 1.67, 1.92, 2.07, 2.32, 2.57, 2.82, 3.0])
def test_the_first_step_is_that_from_noise_alone_where_a_shifted_one_is_rounded(step, shift) -> None:
    first = comfy.model_sampling.time_snr_shift(shift, torch.tensor(1.0))
    assert 1.0 - 1e-6 < float(first) <= 1.0
    x, x0 = _randn(0), _randn(1)
    rounded, exact = (
        step.flow_step(x, x0, torch.stack([sigma, torch.tensor(0.9)]), 0, 0.7) for sigma in (first, torch.tensor(1.0))
    )
    assert relative(rounded.mean, exact.mean) < CLOSE
    assert float(rounded.std) == pytest.approx(float(exact.std), rel=1e-4)


def test_other_noise_processes_are_refused(step) -> None:
    """Also flow models whose noise is larger than 1: HiDream-O1."""
    larger = comfy.model_sampling.CONST()
    larger.noise_scale = 8.0
    for sampling in (object(), larger):
        with pytest.raises(ValueError, match=r"^model: its noise process .*\.$"):
            step.stochastic_step(sampling, _randn(0), _randn(1), torch.tensor([0.9, 0.5]), 0, 0.7)
