"""The mix built from stock parts alone: two guiders, one per model, asked in turn inside one sampler loop.

Nothing of the extension takes part, so agreement with it is evidence. The guiders are nested because each holds its
model ready only while its own `sample` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.sample
import comfy.samplers
import torch

Scale = float | Callable[[float], float]  # constant, or a function of sigma


def two_models(
    base: Any,
    tuned: Any,
    scale: Scale,
    *,
    tuned_cfg: float | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """Latents of x0 = x0_base + scale · (x0_tuned − x0_base); other arguments as of RLGKSampler."""
    return several_models(base, [(tuned, scale, tuned_cfg)], **inputs)


def several_models(
    base: Any,
    tuned: list[tuple[Any, Scale, float | None]],
    *,
    positive: list,
    negative: list,
    latent_image: dict,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    denoise: float = 1.0,
    own_positive: Callable[[], list] | None = None,
) -> torch.Tensor:
    """Latents of x0 = x0_base + Σ_k s_k · (x0_k − x0_base).

    `tuned` has (model, scale, CFG or None for the common one) of each. `own_positive` makes a positive for each model,
    for conds that keep state over a run.
    """
    solver = getattr(comfy.k_diffusion.sampling, f"sample_{sampler_name}")
    latent = comfy.sample.fix_empty_latent_channels(base, latent_image["samples"])
    noise = comfy.sample.prepare_noise(latent, seed, latent_image.get("batch_index"))
    sigmas = comfy.samplers.KSampler(base, steps, base.load_device, sampler_name, scheduler, denoise).sigmas
    ready: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = []

    def run(model: Any, model_cfg: float, sampler_function: Any) -> torch.Tensor:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(own_positive() if own_positive else positive, negative)
        guider.set_cfg(model_cfg)
        sampler = comfy.samplers.KSAMPLER(sampler_function)
        return guider.sample(
            noise, latent, sampler, sigmas, denoise_mask=latent_image.get("noise_mask"), seed=seed, disable_pbar=True
        )

    def with_base(base_x0: Any, x: torch.Tensor, sigmas: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        def mixed(x: torch.Tensor, sigma: torch.Tensor, **base_args: Any) -> torch.Tensor:
            of_base = base_x0(x, sigma, **base_args)
            result = of_base
            for (_, scale, _), x0 in zip(tuned, ready, strict=True):
                now = scale(float(sigma[0])) if callable(scale) else scale
                result = result + now * (x0(x, sigma) - of_base)
            return result

        mixed.inner_model = base_x0.inner_model  # some solvers ask it for the noise process
        return solver(mixed, x, sigmas, **kwargs)

    def from_model(index: int) -> torch.Tensor:
        """Make the tuned models from `index` on ready, then sample."""
        if index == len(tuned):
            return run(base, cfg, with_base)
        result = {}

        def ready_here(x0: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any) -> torch.Tensor:
            ready.append(lambda x, sigma: x0(x, sigma, **extra_args))
            result["samples"] = from_model(index + 1)
            return x

        model, _, own_cfg = tuned[index]
        run(model, cfg if own_cfg is None else own_cfg, ready_here)
        return result["samples"]

    return from_model(0)
