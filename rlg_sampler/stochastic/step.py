"""The Gaussian of one stochastic step: where the next latents lie, given a prediction at the present noise level.

Sampling draws from it, training asks it for log densities and for distances between policies. There are two, for the
two kinds of noise process that models are trained with.

Flow models, x_σ = (1 − σ)·x0 + σ·ε: the SDE with the marginals of the flow's ODE (Flow-GRPO, arXiv 2505.05470, eq. 9),

    mean = x + [v + σ_t²/(2σ)·(x + (1 − σ)·v)]·dt,    std = σ_t·√(−dt),    σ_t = a·√(σ/(1 − σ)),    dt = σ' − σ < 0

with v = (x − x0)/σ and the noise level a. As in its reference, σ in σ_t is the second sigma where it would be 1.

ε and v models, x_σ = x0 + σ·ε: DDIM with η (arXiv 2010.02502, eq. 12 and 16), which in these latents is

    mean = x0 + √(σ'² − std²)·(x − x0)/σ,    std = η·σ'·√(1 − σ'²/σ²)

that is, η = 1 are ancestral steps. DDIM's own latents are these divided by √(1 + σ'²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_sampling import CONST, EPS, IMG_TO_IMG

_ROUNDING = 1e-6
"""A shifted 1 may be so much below it."""


@dataclass(frozen=True)
class StochasticStep:
    """N(mean, std²) of the next latents.

    Attributes:
        mean: (batch, channels, ...).
        std: scalar tensor; 0 where the step draws no noise, which then has no density.
        unit: scalar tensor, what a distance between two means is measured in: σ_t for flow models, as Flow-GRPO's
            reference has it (std without √−dt), and std for the others.
    """

    mean: torch.Tensor
    std: torch.Tensor
    unit: torch.Tensor

    def drawn(self, noise: torch.Tensor) -> torch.Tensor:
        """The next latents for noise from N(0, 1), shaped like the mean."""
        return self.mean + self.std * noise

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """(batch,) float32: of the latents x, as a mean over their values, as the references take it."""
        mean, std = self.mean.float(), self.std.float()
        values = -((x.detach().float() - mean) ** 2) / (2 * std**2) - std.log() - math.log(2 * math.pi) / 2
        return values.flatten(1).mean(dim=1)

    def divergence(self, mean: torch.Tensor) -> torch.Tensor:
        """(batch,) float32: KL divergence from a step with another mean, as a mean over values, in `unit`."""
        difference = (self.mean.float() - mean.float()).flatten(1)
        return (difference**2).mean(dim=1) / (2 * self.unit.float() ** 2)


def is_flow(model_sampling: Any) -> bool:
    """Whether a model's noise process is that of flow models (SD3, Flux, ...)."""
    # One of newer hosts' kinds starts from a picture without noise.
    adds_noise = all(kind.__name__ != "IMG_TO_IMG_FLOW" for kind in type(model_sampling).__mro__)
    return isinstance(model_sampling, CONST) and adds_noise


def stochastic_step(
    model_sampling: Any, x: torch.Tensor, x0: torch.Tensor, sigmas: torch.Tensor, index: int, noise_level: float
) -> StochasticStep:
    """The step of a model from σ_index to the next sigma.

    Args:
        model_sampling: the host's, of the model.
        x: latents at σ_index, (batch, channels, ...).
        x0: the model's prediction there.
        sigmas: σ_0 … σ_n of the run, falling.
        noise_level: a of flow models, η of the others; 0 is Euler's method for both.

    Raises:
        ValueError: the model's noise process is of a third kind.
    """
    check_noise_process(model_sampling)
    step = flow_step if is_flow(model_sampling) else ddim_step
    return step(x, x0, sigmas, index, noise_level)


def check_noise_process(model_sampling: Any) -> None:
    """Raises ValueError: a model's noise process is neither that of flow models nor that of ε and v models."""
    of_sd = isinstance(model_sampling, EPS) and not isinstance(model_sampling, IMG_TO_IMG)
    scaled = getattr(model_sampling, "noise_scale", 1.0) != 1.0  # HiDream-O1
    if scaled or (not is_flow(model_sampling) and not of_sd):
        raise ValueError(
            "model: its noise process has no stochastic step here; use a flow model or one of the SD family."
        )


def flow_step(
    x: torch.Tensor, x0: torch.Tensor, sigmas: torch.Tensor, index: int, noise_level: float
) -> StochasticStep:
    """Of a flow model; arguments as `stochastic_step`."""
    sigma, dt = sigmas[index], sigmas[index + 1] - sigmas[index]
    velocity = (x - x0) / sigma
    below_one = torch.where(sigma > 1.0 - _ROUNDING, sigmas[1], sigma)
    spread = noise_level * (sigma / (1.0 - below_one)).sqrt()
    drift = velocity + spread**2 / (2.0 * sigma) * (x + (1.0 - sigma) * velocity)
    return StochasticStep(x + drift * dt, spread * (-dt).sqrt(), spread)


def ddim_step(x: torch.Tensor, x0: torch.Tensor, sigmas: torch.Tensor, index: int, eta: float) -> StochasticStep:
    """Of an ε or v model; arguments as `stochastic_step`."""
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    std = eta * sigma_next * (1.0 - (sigma_next / sigma) ** 2).sqrt()
    mean = x0 + (sigma_next**2 - std**2).clamp(min=0.0).sqrt() * (x - x0) / sigma
    return StochasticStep(mean, std, std)
