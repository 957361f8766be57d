"""Advantages and the clipped loss, as formulas."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

GROUP, GROUPS = 12, 4
NAMES = [group for group in range(GROUPS) for _ in range(GROUP)]


@pytest.fixture(scope="module")
def formulas(rlg: SimpleNamespace) -> SimpleNamespace:
    compared = rlg.module("training.methods.advantages").compared
    return SimpleNamespace(compared=compared, loss=rlg.module("training.methods.losses").clipped_policy_loss)


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 50))
def test_advantages_are_about_the_group_alone(formulas: SimpleNamespace, seed: int, shift: float, scale: float) -> None:
    """An easy prompt earns no advantage for all its pictures, nor does the unit of the reward matter."""
    rewards = torch.randn(len(NAMES), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    advantages = formulas.compared(rewards, NAMES, 5.0)
    assert torch.allclose(advantages.reshape(GROUPS, GROUP).mean(dim=1), torch.zeros(GROUPS), atol=1e-6)
    torch.testing.assert_close(formulas.compared(scale * rewards + shift, NAMES, 5.0), advantages, rtol=5e-3, atol=5e-3)
    orders = (values.reshape(GROUPS, GROUP).argsort(dim=1) for values in (advantages, rewards))
    assert torch.equal(*orders)


@pytest.mark.parametrize("reward", [0.0, 0.7, 1.1, 1.4, -0.3])
def test_equal_rewards_teach_nothing(formulas: SimpleNamespace, reward: float) -> None:
    """Not even by rounding, which a learner would take for a picture that is better: it leaves out zeros alone."""
    names = [name for name in "abc" for _ in range(24)]
    rewards = torch.full((72,), reward, dtype=torch.float64)
    rewards[24:48] += torch.linspace(0, 1, 24)
    assert [int(part.count_nonzero()) for part in formulas.compared(rewards, names, 5.0).split(24)] == [0, 24, 0]


@pytest.mark.parametrize(("advantage", "ratio", "flat"), [
    (1.0, 1.01, True), (1.0, 0.99, False), (-1.0, 0.99, True), (-1.0, 1.01, False), (1.0, 1.0, False),
])  # fmt: skip
def test_nothing_is_won_beyond_the_clip_range(
    formulas: SimpleNamespace, advantage: float, ratio: float, flat: bool
) -> None:
    with torch.inference_mode(False):
        ratios = torch.tensor([ratio], requires_grad=True)
        formulas.loss(ratios, torch.tensor([advantage]), 1e-3).sum().backward()
    assert float(ratios.grad) == (0 if flat else -advantage)
