"""The sampler that Flow-GRPO explores with while it trains (arXiv 2505.05470, eq. 9): `step.flow_step` at every step.

As in the reference, the last step adds noise too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import trange

from .step import check_noise_process, flow_step, is_flow


@torch.no_grad()
def sample_flow_grpo(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    noise_level: float = 0.7,
    noise_sampler: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """A sampler function of the host.

    Args:
        model: (x, sigma) → x0, as the host passes it.
        x: latents at σ_0, shape (batch, channels, ...).
        sigmas: σ_0 … σ_n, falling, of a flow model.
        extra_args, callback, disable: as the host's own samplers take them.
        noise_level: a; 0 is Euler's method.
        noise_sampler: (σ, σ') → ε shaped like `x`; by default from the run's seed.

    Raises:
        ValueError: the model is no flow model, or one with a noise of its own.
    """
    sampling = model.inner_model.inner_model.model_sampling
    check_noise_process(sampling)
    if not is_flow(sampling):
        raise ValueError(
            "sampler: Flow-GRPO SDE needs a flow model (SD3, Flux, ...); use euler_ancestral for this model."
        )
    extra_args = extra_args or {}
    noise_sampler = noise_sampler or _noise_of(x, extra_args.get("seed"))
    rows = x.new_ones([x.shape[0]])
    for i in trange(len(sigmas) - 1, disable=disable):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = model(x, sigma * rows, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        step = flow_step(x, x0, sigmas, i, noise_level)
        x = step.drawn(noise_sampler(sigma, sigma_next)) if noise_level > 0.0 else step.mean
    return x


def _noise_of(x: torch.Tensor, seed: int | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Noise from the CPU, the same on every device, and another than the picture's first noise, which has this seed."""
    generator = None if seed is None else torch.Generator().manual_seed((seed + 1) % 2**64)

    def draw(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    return draw
