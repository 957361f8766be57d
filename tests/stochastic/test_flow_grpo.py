"""The stochastic sampler of Flow-GRPO: its formula, and the promise of any such SDE, to keep the ODE's marginals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_sampling
import comfy.samplers
import pytest
import torch

from pairs import CLOSE, conds, load_checkpoint, relative, task, tiny_unet, write_lora, write_model


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Any:
    write_lora(models_dir, "flow-sde")
    return load_checkpoint(write_model(models_dir, "flow-sde"))


@pytest.fixture
def sampler(rlg: SimpleNamespace) -> Callable[..., torch.Tensor]:
    return rlg.module("rlg_sampler.stochastic.flow_grpo_sampler").sample_flow_grpo


class Gaussian:
    """A flow model of the data N(mean, spread²), whose E[x0 | x] is known; dressed as the host hands models over."""

    def __init__(self, mean: float = 2.0, spread: float = 0.5) -> None:
        self.mean, self.variance = mean, spread**2
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=comfy.model_sampling.CONST()))

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = sigma[:, None]
        gain = (1 - t) * self.variance / ((1 - t) ** 2 * self.variance + t**2)
        return self.mean + gain * (x - (1 - t) * self.mean)


@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.7, 1.2])
def test_any_noise_level_draws_from_the_data(sampler, noise_level) -> None:
    """Marginals are kept, in the limit of small steps: mean and spread of the data come out."""
    x = torch.randn(40000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(1, 0, 401, dtype=torch.float64)
    end = sampler(Gaussian(), x, sigmas, {}, noise_level=noise_level, disable=True)
    assert end.mean().item() == pytest.approx(2.0, abs=0.03)
    assert end.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("noise_level", [0.3, 0.7])
def test_a_step_is_the_paper_s(sampler, noise_level) -> None:
    """Equation 9, written out in scalars; where t = 1 the reference puts the second sigma into σ_t."""
    noise = iter(torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(1)))
    drawn: list[float] = []

    def draw(*_: Any) -> torch.Tensor:
        drawn.append(float(e := next(noise)))
        return e

    model, start, sigmas = Gaussian(), 0.3, [1.0, 0.8, 0.3, 0.0]
    end = sampler(
        model,
        torch.tensor([[start]]),
        torch.tensor(sigmas),
        {},
        noise_level=noise_level,
        noise_sampler=draw,
        disable=True,
    )
    x = start
    for i, (t, to) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        v = (x - model(torch.tensor([[x]]), torch.tensor([t])).item()) / t
        sigma_t = noise_level * math.sqrt(t / (1 - (0.8 if t == 1 else t)))
        drift = v + sigma_t**2 / (2 * t) * (x + (1 - t) * v)
        x = x + drift * (to - t) + sigma_t * math.sqrt(t - to) * drawn[i]
    assert end.item() == pytest.approx(x, rel=1e-5)


def _run(run_node: Callable, base: Any, sampler: Any, seed: int = 3, **pair: Any) -> torch.Tensor:
    inputs = task(steps=5)
    (guider,) = run_node("RLGGuider", base=base, positive=conds(1), negative=conds(2), cfg=4.5, scale=1.6, **pair)
    sigmas = run_node("BasicScheduler", model=base, scheduler="normal", steps=5, denoise=1.0)[0]
    (noise,) = run_node("RandomNoise", noise_seed=seed)
    result, _ = run_node(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
        latent_image=inputs["latent_image"],
    )  # fmt: skip
    return result["samples"]


def test_without_noise_it_is_euler(base, run_node) -> None:
    (tuned, _) = run_node("RLGLoadLora", model=base, lora_name="flow-sde", strength=1.0)
    (quiet,) = run_node("RLGSamplerFlowGRPO", noise_level=0.0)
    (euler,) = run_node("KSamplerSelect", sampler_name="euler")
    a, b = (_run(run_node, base, sampler, tuned=tuned) for sampler in (quiet, euler))
    assert relative(a, b) < CLOSE


def test_noise_comes_from_the_seed_and_is_not_the_first_noise_again(base, run_node) -> None:
    (tuned, _) = run_node("RLGLoadLora", model=base, lora_name="flow-sde", strength=1.0)
    (loud,) = run_node("RLGSamplerFlowGRPO", noise_level=0.7)
    first, again, other = (_run(run_node, base, loud, seed, tuned=tuned) for seed in (3, 3, 2**64 - 1))
    assert torch.equal(first, again) and relative(other, first) > 0.01


def test_first_added_noise_is_independent_of_the_start(rlg) -> None:
    draw = rlg.module("rlg_sampler.stochastic.flow_grpo_sampler")._noise_of(torch.zeros(1, 4, 32, 32), 5)
    start = torch.randn(1, 4, 32, 32, generator=torch.manual_seed(5))
    added = draw(None, None)
    assert abs(torch.corrcoef(torch.stack([start.flatten(), added.flatten()]))[0, 1]) < 0.1


def test_a_flow_model_with_noise_of_another_size_is_refused(sampler) -> None:
    """HiDream-O1's: what the formula adds would be eight times too little."""
    model = Gaussian()
    model.inner_model.inner_model.model_sampling.noise_scale = 8.0
    with pytest.raises(ValueError, match=r"^model: its noise process has no stochastic step here.*\.$"):
        sampler(model, torch.zeros(1, 1), torch.tensor([1.0, 0.0]))


def test_other_models_are_refused(run_node) -> None:
    unet = tiny_unet()
    (sampler,) = run_node("RLGSamplerFlowGRPO", noise_level=0.7)
    guider = comfy.samplers.CFGGuider(unet)
    guider.set_conds([[torch.zeros(1, 8, 32), {}]], [[torch.zeros(1, 8, 32), {}]])
    latent = torch.zeros(1, 4, 16, 16)
    with pytest.raises(ValueError, match=r"^sampler: Flow-GRPO SDE needs a flow model .*\.$"):
        guider.sample(torch.randn(1, 4, 16, 16), latent, sampler, torch.tensor([10.0, 1.0, 0.0]), disable_pbar=True)
