"""One reward of several: the weighted sum by hand, and what cannot be summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny_rewards as tiny
from pictures import pictures


class Channel:
    """How bright one channel is: a reward with a known gradient."""

    unit, range, source = "brightness", (0.0, 1.0), "the test"

    def __init__(self, index: int) -> None:
        self._index, self.name = index, "rgb"[index]

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.gradient_score(images, prompts)

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images[..., self._index].mean((1, 2))


RED, GREEN = Channel(0), Channel(1)


def _combine(run_node: Callable, normalise: str = "none", **given: Any) -> Any:
    return run_node("RLGCombineRewards", **{"reward_1": RED, "weight_1": 1.0, "normalise": normalise, **given})[0]


def test_it_is_the_weighted_sum(run_node: Callable) -> None:
    reward = _combine(run_node, weight_1=2.0, reward_3=GREEN, weight_3=-0.5)
    red, green = (pictures()[..., index].mean((1, 2)) for index in (0, 1))
    torch.testing.assert_close(reward.score(pictures(), [""] * 4), 2 * red - 0.5 * green)
    assert reward.name == "2 r + -0.5 g" and reward.source == "the test" and reward.range == (-0.5, 2.0)
    nested = _combine(run_node, reward_1=reward, weight_1=10.0)
    torch.testing.assert_close(nested.score(pictures(), [""] * 4), 20 * red - 5 * green)


class Quoting(Channel):
    """A reward that reads prompts with a text in quotes alone."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        if unread := [prompt for prompt in prompts if '"' not in prompt]:
            raise ValueError(f"prompts: nothing is quoted in '{unread[0]}'.")

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.check_prompts(prompts)
        return super().gradient_score(images, prompts)


BLUE = Quoting(2)
MIXED = ['a sign "A"', "two cats", 'a sign "B"', "a dog"]


@pytest.mark.parametrize("gradient", [False, True])
def test_one_list_holds_prompts_for_several_rewards(run_node: Callable, gradient: bool) -> None:
    """A reward counts for the prompts that it reads, and is measured over their pictures alone."""
    shown = pictures()
    red, blue = (shown[..., index].mean((1, 2)).double() for index in (0, 2))
    blue = blue[[0, 2]]
    for normalise in ("none", "standard deviation"):
        reward = _combine(run_node, normalise, weight_1=2.0, reward_2=BLUE, weight_2=0.5, unreadable="leave out")
        if normalise != "none":
            red, blue = ((of - of.mean()) / of.std(correction=0) for of in (red, blue))
        expected = 2 * red
        expected[[0, 2]] += 0.5 * blue
        if gradient:
            with torch.inference_mode(False):
                given = shown.clone().requires_grad_()
                found = reward.gradient_score(given, MIXED)
                found[0].backward()
            assert given.grad[0, ..., 2].abs().sum() > 0 and given.grad.isfinite().all()
        else:
            found = reward.score(shown, MIXED)
        torch.testing.assert_close(found.detach().double(), expected, rtol=0, atol=1e-4)
    assert reward.check_prompts(MIXED) is None
    assert _combine(run_node, reward_1=BLUE, weight_1=-1.0, unreadable="leave out").range == (-1.0, 0.0)


def test_prompts_that_a_reward_cannot_read_are_refused_unless_another_reads_them(run_node: Callable) -> None:
    refusing = _combine(run_node, reward_2=BLUE)
    alone = _combine(run_node, reward_1=BLUE, unreadable="leave out")
    for reward in (refusing, alone):
        for ask in (reward.check_prompts, lambda asked, reward=reward: reward.score(pictures(), asked)):
            with pytest.raises(ValueError, match=r"^prompts: nothing is quoted in 'two cats'\.$"):
                ask(MIXED)


@pytest.mark.parametrize("normalise", ["none", "standard deviation"])
def test_a_reward_that_gives_no_number_is_not_taken_for_one_that_is_left_out(
    run_node: Callable, normalise: str
) -> None:
    class Broken(Quoting):
        def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return torch.full((len(images),), math.nan)

    reward = _combine(run_node, normalise, reward_2=Broken(1), unreadable="leave out")
    assert reward.score(pictures(), MIXED).isfinite().tolist() == [False, True, False, True]


def test_standard_deviations_are_those_of_the_batch(run_node: Callable) -> None:
    reward = _combine(run_node, "standard deviation", weight_1=2.0, reward_2=GREEN, weight_2=0.5)
    red, green = (pictures()[..., index].mean((1, 2)).double().numpy() for index in (0, 1))
    expected = 2 * (red - red.mean()) / red.std() + 0.5 * (green - green.mean()) / green.std()
    np.testing.assert_allclose(reward.score(pictures(), [""] * 4).numpy(), expected, atol=1e-4)
    assert reward.range == (-math.inf, math.inf)
    assert reward.score(pictures(0), []).shape == (0,)
    same = pictures(1).expand(3, -1, -1, -1)
    assert reward.score(same, [""] * 3).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"^images: one picture has no standard deviation"):
        reward.score(pictures(1), [""])


@pytest.mark.parametrize("normalise", ["none", "standard deviation"])
def test_its_gradient_is_the_weighted_sum_of_gradients(run_node: Callable, normalise: str) -> None:
    reward = _combine(run_node, normalise, weight_1=2.0, reward_2=GREEN, weight_2=-1.0)
    with torch.inference_mode(False):
        images = pictures().requires_grad_()
        scores = reward.gradient_score(images, [""] * 4)
        torch.testing.assert_close(scores.detach(), reward.score(images.detach(), [""] * 4))
        scores.sum().backward()
    for index, weight in ((0, 2.0), (1, -1.0), (2, 0.0)):
        values = images.detach()[..., index].mean((1, 2)).double()
        deviation = 1.0 if normalise == "none" else values.std(correction=0).item()
        expected = torch.full((4, 28, 28), weight / (28 * 28) / deviation)
        torch.testing.assert_close(images.grad[..., index], expected, rtol=1e-4, atol=1e-9)


def test_a_reward_of_weight_0_is_not_asked(run_node: Callable) -> None:
    class Broken(Channel):
        def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            raise AssertionError

    reward = _combine(run_node, reward_2=Broken(1), weight_2=0.0)
    assert reward.score(pictures(), [""] * 4).shape == (4,)
    with pytest.raises(ValueError, match=r"^weight_1: all weights are 0"):
        _combine(run_node, weight_1=0.0)


def test_loaded_rewards_combine_and_one_without_gradient_is_named(
    rlg: SimpleNamespace, run_node: Callable, reward_models: Path
) -> None:
    tiny.write_clip_l(reward_models)
    clip, jpeg = (run_node("RLGLoadReward", name=n, file="auto")[0] for n in ("clip_score", "jpeg_compressibility"))
    reward = _combine(run_node, reward_1=clip, reward_2=jpeg, weight_2=0.1)
    expected = clip.score(pictures(), ["a cat"] * 4) + 0.1 * jpeg.score(pictures(), ["a cat"] * 4)
    torch.testing.assert_close(reward.score(pictures(), ["a cat"] * 4), expected)
    with pytest.raises(ValueError, match=r"^reward: jpeg_compressibility has no gradient"):
        reward.gradient_score(pictures(0), [])
    scored = run_node("RLGScore", images=[pictures()], prompt=["a cat"], reward=[reward])
    assert scored[0] == pytest.approx(expected.tolist(), rel=1e-5)


def test_files_are_asked_for_before_the_run(rlg: SimpleNamespace, reward_models: Path) -> None:
    node = rlg.nodes["RLGLoadReward"]
    assert node.validate_inputs(name="jpeg_compressibility", file="auto") is True
    assert "ImageReward.pt" in node.validate_inputs(name="imagereward", file="auto")
    torch.save(tiny.image_reward_state(), reward_models / "ImageReward.pt")
    assert "vocab.txt" in node.validate_inputs(name="imagereward", file="auto")
    torch.save(tiny.head_state(8), reward_models / "sac+logos+ava1-l14-linearMSE.pth")
    assert "clip-vit-large-patch14" in node.validate_inputs(name="aesthetic", file="auto")
    tiny.write_clip_l(reward_models)
    assert node.validate_inputs(name="aesthetic", file="auto") is True
    assert "'gone.pt'" in node.validate_inputs(name="aesthetic", file="gone.pt")
    assert node.validate_inputs(name=None, file="auto") is True  # linked: known when it runs
    # So has the host it for nodes that take lists.
    assert rlg.nodes["RLGDiversity"].validate_inputs(measure=(None,), file=(None,)) is True


def test_what_a_training_run_shows_has_a_unit_of_its_own(run_node: Callable) -> None:
    """Sums of scores as they are, also where it learns from them in standard deviations."""
    assert _combine(run_node, "standard deviation").unit_of_weighed == RED.unit
    for normalise in ("standard deviation", "none"):
        assert _combine(run_node, normalise, weight_1=2.0).unit_of_weighed == "weighted sum"
        assert _combine(run_node, normalise, reward_2=GREEN, weight_2=1.0).unit_of_weighed == "weighted sum"
