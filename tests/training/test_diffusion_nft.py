"""DiffusionNFT: the reference's loss in velocities, what pictures that are alike teach, and the policy that draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_tasks as tasks
from hypothesis import given
from hypothesis import strategies as st

from pairs import FAMILIES


@pytest.fixture(scope="module")
def models(models_dir: Path) -> dict[str, tuple[Any, Any]]:
    with torch.inference_mode():
        unet = FAMILIES["SD1.5"].load(), tasks.four_channels()
    return {"SD3": tasks.load(tasks.tiny_checkpoint(models_dir, "diffusion-nft")), "SD1.5": unet}


@pytest.fixture
def make(training: SimpleNamespace, models: dict[str, tuple[Any, Any]]) -> Callable[..., Any]:
    def trainer(family: str = "SD3", reward: Any = None, **change: Any) -> Any:
        small = {"steps": 4, "groups": 2, "group_size": 3, "trained_steps": 2}
        method = replace(training.presets.DIFFUSION_NFT, **small | change)
        texts = tasks.texts_of(training, family)
        of = training.task.Task(*models[family], texts, reward or tasks.Redness(), tasks.SIDE, tasks.SIDE)
        settings = training.trainer.Settings(rank=4, learning_rate=1e-2, batch_size=2, checkpointing=False)
        return training.trainer.Trainer(of, method, settings)

    return trainer


def _scatter(matrices: Mapping[str, torch.Tensor], seed: int) -> None:
    """Make a policy that is not its base."""
    for number, (name, tensor) in enumerate(matrices.items()):
        if name.endswith(".up"):
            tensor.data.normal_(std=0.05, generator=torch.Generator().manual_seed(seed + number))


def _first(trainer: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """The gradients of the first iteration, which leaves the policy as it is, and what it says of itself."""
    kept: dict[str, torch.Tensor] = {}

    def step() -> float:
        kept.update({n: p.grad.clone() for n, p in trainer.policy.parameters.items() if p.grad is not None})
        return 0.0

    trainer._step = step
    (entry,) = trainer.iterate(1)
    return kept, entry


@pytest.mark.parametrize("family", ["SD3", "SD1.5"])
def test_the_gradient_is_that_of_the_reference(training, make, family) -> None:
    """NVlabs/DiffusionNFT's train_nft_sd3.py as its formulas say, a picture at a time: sampling by the old policy, r,
    both predictions, their weights and KL, in what the network of a family predicts (v = ε − x0, or ε where
    x_t = α·x0 + s·ε with α² + s² = 1). Three policies: the old one, the trained one, and the base."""
    beta, kl_weight, largest, groups, size = 0.5, 0.1, 0.4, 2, 3
    trainer = make(family, beta=beta, kl_weight=kl_weight, largest_advantage=largest)
    _scatter(trainer.policy.parameters, 0)
    _scatter(trainer._learner._old, 100)
    old = {name: tensor.clone() for name, tensor in trainer._learner._old.items()}
    mine, entry = _first(trainer)
    policy, task, shape = trainer.policy, trainer.task, trainer.task.latent_shape
    prompts, stream = task.prompts.chosen(0, 0, groups), training.prompts.stream
    places = [(group, row) for group in range(groups) for row in range(size)]
    generators = {place: stream(0, "pictures", 0, *place) for place in places}

    def with_model(place: tuple[int, int], body: Callable[[Any], Any]) -> Any:
        with training.gradients.training_mode():
            return trainer._host.run(prompts[place[0]], torch.Size((1, *shape)), body)

    def normal(place: tuple[int, int]) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generators[place])

    def sampled(run: Any, place: tuple[int, int]) -> torch.Tensor:
        x = run.start(normal(place))
        with policy.with_values(old):
            for step in range(len(run.sigmas) - 1):
                x = x + (x - run.x0(x, step)) / run.sigmas[step] * (run.sigmas[step + 1] - run.sigmas[step])
        return x

    pictures = {place: with_model(place, lambda run, p=place: sampled(run, p)) for place in places}
    rewards = torch.cat([tasks.Redness().score(task.decoded(pictures[place]), [""]) for place in places]).double()
    above = rewards.view(groups, size) - rewards.view(groups, size).mean(dim=1, keepdim=True)
    r = (above / (rewards.std(correction=0) + 1e-4)).clamp(-largest, largest) / largest / 2 + 0.5
    assert r.min() == 0 and len(r.unique()) > 2, "a picture that is wholly bad, and others"
    distances: list[float] = []

    def learn(run: Any, place: tuple[int, int], index: int, count: int) -> None:
        x0, sigma, eps = pictures[place], run.sigmas[index], normal(place)
        alpha, s = (1 - sigma, sigma) if family == "SD3" else ((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)
        noisy = alpha * x0 + s * eps

        def predicted() -> torch.Tensor:
            if family == "SD3":
                return (noisy - run.x0(noisy, index)) / sigma
            return (noisy - alpha * run.x0(noisy / alpha, index)) / s

        def error(prediction: torch.Tensor) -> torch.Tensor:
            clean = noisy - s * prediction if family == "SD3" else (noisy - s * prediction) / alpha
            size = (clean - x0).detach().abs().mean().clip(min=1e-5)
            return ((clean - x0) ** 2 / size).mean()

        with policy.with_values(old):
            before = predicted()
        with policy.disabled():
            base = predicted()
        with torch.enable_grad():
            now = predicted()
            positive = error(beta * now + (1 - beta) * before)
            negative = error((1 + beta) * before - beta * now)
            kl = ((now - base) ** 2).mean()
            good = float(r[place])
            loss = largest * (good * positive / beta + (1 - good) * negative / beta) + kl_weight * kl
            (loss / count).backward()
        distances.append(float(kl.detach()))

    for place in places:
        for index in trainer.method.levels(stream(0, "pictures", 0, place[0])):
            with_model(place, lambda run, p=place, i=index: learn(run, p, i, count=2 * len(places)))
    theirs = {n: p.grad for n, p in policy.parameters.items() if p.grad is not None}
    assert theirs.keys() == mine.keys() and len(distances) == 2 * len(places)
    for parameter, gradient in theirs.items():
        assert (mine[parameter] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), parameter
    assert entry.kl == pytest.approx(sum(distances) / len(distances), rel=1e-4)
    assert entry.reward == pytest.approx(float(rewards.mean()), abs=1e-6)


@given(r=st.floats(0.0, 1.0), beta=st.floats(0.01, 3.0), seed=st.integers(0, 2**32))
def test_at_the_old_policy_a_picture_counts_by_two_r_less_one(training, r: float, beta: float, seed: int) -> None:
    """There ∂loss/∂x̂ = (2r − 1) · 2β · (x̂ − x0) / (n · mean |x̂ − x0|): 0 for a picture like the others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        old, clean = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
        x0 = old.clone().requires_grad_()
        loss = training.losses.contrast_loss(x0, old, clean, torch.tensor([r, 0.5]), beta)
        (gradient,) = torch.autograd.grad(loss.sum(), x0)
    error = (old - clean)[0]
    expected = (2 * r - 1) * 2 * beta * error / (error.numel() * error.abs().mean())
    torch.testing.assert_close(gradient[0], expected, rtol=1e-6, atol=1e-7)
    assert gradient[1].abs().max() < 1e-12


class Alike(tasks.Redness):
    """A reward that says the same of all pictures."""

    def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.full((len(images),), 0.3)


@pytest.mark.parametrize(("kl_weight", "beta"), [(0.0, 1.0), (0.0, 0.1), (1e-4, 0.1)])
def test_pictures_that_are_alike_teach_nothing(make, kl_weight, beta) -> None:
    """AdamW makes full steps of the smallest gradient, so there must be none; what is left is its weight decay."""
    trainer = make(reward=Alike(), kl_weight=kl_weight, beta=beta)
    before = {name: parameter.detach().clone() for name, parameter in trainer.policy.parameters.items()}
    assert [entry.gradient for entry in trainer.iterate(2)] == [0.0, 0.0]
    for name, parameter in trainer.policy.parameters.items():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-5, atol=0.0 if not kl_weight else 1e-5)


def test_the_policy_that_draws_follows(make) -> None:
    """After iteration i (from 0) it keeps min(growth · i, largest) of its own; without a KL there is no distance."""
    trainer = make(lag_growth=0.3, trained_steps=1, kl_weight=0.0)
    expected = {name: tensor.clone() for name, tensor in trainer._learner._old.items()}
    for kept, entry in zip((0.0, 0.3, 0.5, 0.5), trainer.iterate(4), strict=True):
        assert entry.kl == 0.0
        for name, parameter in trainer.policy.parameters.items():
            expected[name] = kept * expected[name] + (1 - kept) * parameter.detach()
            assert torch.allclose(trainer._learner._old[name], expected[name], atol=1e-7), (kept, name)
    assert any(not torch.equal(trainer._learner._old[n], p) for n, p in trainer.policy.parameters.items())


def test_the_numbers_are_the_reference_s(training) -> None:
    """config/nft.py's sd3_geneval, base.py, return_decay of type 1 and the EMA of train_nft_sd3.py."""
    of = training.presets.DIFFUSION_NFT
    assert (of.steps, of.cfg, of.group_size) == (10, 1.0, 24)
    assert (of.beta, of.kl_weight, of.largest_advantage) == (1.0, 1e-4, 5.0)
    assert (of.lag_growth, of.largest_lag, of.average_decay) == (0.001, 0.5, 0.9)


def test_the_noise_levels_are_those_of_sampling(training) -> None:
    of, generator = training.presets.DIFFUSION_NFT, torch.Generator().manual_seed(0)
    assert sorted(of.levels(generator)) == list(range(10))
    some = [replace(of, trained_steps=4).levels(generator) for _ in range(50)]
    assert all(len(set(levels)) == 4 for levels in some) and {i for levels in some for i in levels} == set(range(10))


def test_it_raises_the_reward(make) -> None:
    rewards = [entry.reward for entry in make(groups=1, group_size=8).iterate(8)]
    assert rewards[-1] > rewards[0] + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 1}, "group_size: 1 picture per prompt has none to be compared with"),
        ({"groups": 0}, "groups: without pictures nothing is learned"),
        ({"steps": 0}, "steps: pictures cannot be sampled without a step"),
        ({"trained_steps": 11}, r"trained_steps: 11 of 10 noise levels cannot be trained; use 0 \(all\) to 10"),
        ({"trained_steps": -1}, "trained_steps: -1 of 10 noise levels cannot be trained"),
        ({"beta": 0.0}, "beta: 0 compares the policy with itself"),
        ({"largest_advantage": 0.0}, "largest_advantage: 0 leaves no picture better than another"),
    ],
)
def test_settings_that_cannot_be_are_refused(training, change, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}.*\\.$"):
        replace(training.presets.DIFFUSION_NFT, **change)
