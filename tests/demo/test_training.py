"""The demo's training: the steps of Flow-GRPO against theory, files against diffusers, and a run that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from hypothesis import given
from hypothesis import strategies as st

from demo.train import base, flow_grpo, loop
from demo.train.export import host_state_dict


@pytest.fixture(autouse=True)
def _gradients(_inference_mode: None) -> Iterator[None]:
    """Training is not done in the mode that the host runs nodes in."""
    with torch.inference_mode(False):
        yield


def _sigmas(steps: int) -> torch.Tensor:
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return 3 * t / (1 + 2 * t)


def _exact_velocity(x: torch.Tensor, sigma: torch.Tensor, size: float) -> torch.Tensor:
    """E[ε − x0 | x] for x0 ~ N(0, size²): linear regression on x = (1 − σ) x0 + σ ε."""
    return x * (sigma - (1 - sigma) * size**2) / ((1 - sigma) ** 2 * size**2 + sigma**2)


def _run(noise_level: float, steps: int, size: float, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(flow_grpo, "NOISE_LEVEL", noise_level)
    generator = torch.Generator().manual_seed(0)
    sigmas = _sigmas(steps)
    x = torch.randn(50_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    for index in range(steps):
        step = flow_grpo.sde_step(x, _exact_velocity(x, sigmas[index], size), sigmas, index)
        x = step.mean + step.std * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("noise_level", [0.3, 0.7])
def test_noisy_sampling_ends_in_the_same_distribution(
    size: float, noise_level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flow-GRPO's SDE has the marginals of the flow's ODE: data of size `size` come out, whatever the noise level."""
    found = _run(noise_level, steps=300, size=size, monkeypatch=monkeypatch)
    assert float(found.std()) == pytest.approx(size, rel=0.02)
    assert float(found.mean()) == pytest.approx(0, abs=0.02 * size)


def test_without_noise_a_step_is_eulers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_grpo, "NOISE_LEVEL", 0.0)
    x, predicted = torch.randn(2, 3, 16, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    sigmas = _sigmas(10)
    for index in range(10):
        step = flow_grpo.sde_step(x, predicted, sigmas, index)
        assert step.std == 0
        torch.testing.assert_close(step.mean, x + predicted * float(sigmas[index + 1] - sigmas[index]))


@pytest.mark.parametrize("noisy_steps", [0, 3, 10])
def test_only_the_first_steps_are_noisy(noisy_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After them every step is Euler's on the flow's ODE, and has no density to train on."""
    sigmas = _sigmas(10).float()
    monkeypatch.setattr(flow_grpo, "velocity", lambda model, x, sigma, text: _exact_velocity(x, sigma[0], 0.5))
    text = SimpleNamespace(pooled=torch.zeros(4, 1))
    path, densities = flow_grpo.sample(None, text, sigmas, noisy_steps, torch.Generator().manual_seed(3))
    assert len(path) == 11 and len(densities) == noisy_steps
    for index, (x, after) in enumerate(zip(path, path[1:], strict=False)):
        euler = x + (sigmas[index + 1] - sigmas[index]) * _exact_velocity(x, sigmas[index], 0.5)
        assert torch.allclose(after, euler, atol=1e-5) == (index >= noisy_steps)


def test_log_densities_differ_as_the_normal_distributions_do() -> None:
    generator = torch.Generator().manual_seed(2)
    mean, one, two = torch.randn(3, 5, 16, 4, 4, generator=generator).unbind()
    step = flow_grpo.Step(mean, std=0.3, diffusion=1.0)
    normal = torch.distributions.Normal(mean, 0.3)
    expected = (normal.log_prob(one) - normal.log_prob(two)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(step.log_density(one) - step.log_density(two), expected)


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 50))
def test_advantages_are_about_the_group_alone(seed: int, shift: float, scale: float) -> None:
    """An easy prompt earns no advantage for all its pictures, nor does the unit of the reward matter."""
    rewards = torch.randn(4 * flow_grpo.GROUP, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    advantages = flow_grpo.group_advantages(rewards)
    assert torch.allclose(advantages.reshape(4, -1).mean(dim=1), torch.zeros(4, dtype=torch.float64), atol=1e-6)
    torch.testing.assert_close(flow_grpo.group_advantages(scale * rewards + shift), advantages, rtol=5e-3, atol=5e-3)
    of_group = rewards.reshape(4, -1)
    order = advantages.reshape(4, -1).argsort(dim=1)
    assert torch.equal(order, of_group.argsort(dim=1))


def test_equal_rewards_teach_nothing() -> None:
    assert flow_grpo.group_advantages(torch.full((2 * flow_grpo.GROUP,), 0.7)).abs().max() < 1e-2


@pytest.mark.parametrize(("advantage", "ratio", "flat"), [
    (1.0, 1.01, True), (1.0, 0.99, False), (-1.0, 0.99, True), (-1.0, 1.01, False), (1.0, 1.0, False),
])  # fmt: skip
def test_nothing_is_won_beyond_the_clip_range(advantage: float, ratio: float, flat: bool) -> None:
    ratios = torch.tensor([ratio], requires_grad=True)
    flow_grpo.clipped_gain(ratios, torch.tensor([advantage])).backward()
    assert float(ratios.grad) == (0 if flat else advantage)


def test_files_read_back_by_diffusers_are_the_trained_weights() -> None:
    torch.manual_seed(0)
    model = base.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    weights = model.state_dict()
    back = convert_sd3_transformer_checkpoint_to_diffusers(host_state_dict(weights))
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor), name


def test_a_weight_without_a_name_in_checkpoints_is_an_error() -> None:
    with pytest.raises(KeyError, match="something_new"):
        host_state_dict(base.build().state_dict() | {"something_new.weight": torch.zeros(1)})


def _toy(folder: Path, steps: int, stop_after: int | None = None, seed: int = 5) -> tuple[torch.Tensor, list]:
    """A tiny training; `stop_after` ends it as Ctrl-C does."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        if index == stop_after:
            raise KeyboardInterrupt
        loss = (model(torch.randn(8, 3, generator=generator)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    history = loop.train(folder / "toy.ckpt", steps, seed, {"model": model, "optimizer": optimizer}, step)
    return model.weight.detach().clone(), history


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole, history = _toy(tmp_path / "whole", steps=12)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "stopped", steps=12, stop_after=7)
    resumed, resumed_history = _toy(tmp_path / "stopped", steps=12)
    assert torch.equal(whole, resumed)
    assert history == resumed_history and len(history) == 12
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["toy.ckpt"]


def test_a_checkpoint_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    _toy(tmp_path, steps=2)
    with pytest.raises(ValueError, match="seed 5, not 6"):
        _toy(tmp_path, steps=2, seed=6)
