"""Where the networks of rewards and of measures of diversity compute on another device than pictures come from, they
say what they say on the CPU; see `second_device.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
import torchvision

import tiny_rewards as tiny
from pictures import pictures
from second_device import CPU, GPU, second_device

PROMPTS = ["a red cat", "a blue dog on the mat", "the cat"]
OF_NETWORKS = ["pickscore", "imagereward", "hps_v2.1", "mps", "aesthetic", "clip_score"]
OTHERS = ["jpeg_compressibility", "text_rendering", "geneval"]
PROMPTS_OF = {
    "text_rendering": [f'a sign that says "{letter}"' for letter in "ABC"],
    "geneval": ["a photo of a dog", "a photo of two dogs", "a photo of a red cat"],
}
MEASURES = ["clip", "dino", "lpips"]


@pytest.fixture
def load(rlg: SimpleNamespace, reward_models: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A reward or a measure by name, on a device."""
    tiny.write_all(reward_models, rlg.module("rewards.clip").from_open_clip)
    tiny.write_dinov2(reward_models / "dinov2-base")
    tiny.write_detector(reward_models / "mask2former-swin-small-coco-instance")
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), reward_models / "alexnet-owt-7be5be79.pth")

    def load(name: str, device: torch.device) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(comfy.model_management, "text_encoder_device", lambda: device)
            kinds = rlg.module("rewards.diversity").MEASURES if name in MEASURES else rlg.module("rewards.registry")
            return kinds.load(name, None)

    return load


@pytest.mark.parametrize("name", [*OF_NETWORKS, *OTHERS])
def test_a_reward_is_that_of_the_cpu(load, name) -> None:
    """Its scores, and the gradients of pictures on either device."""
    images, prompts = pictures(3, 40, 33), PROMPTS_OF.get(name, PROMPTS)

    def gradient(reward: Any, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone().requires_grad_()
            return torch.autograd.grad(reward.gradient_score(images, prompts).sum(), images)[0].cpu()

    reward = load(name, CPU)
    expected = [reward.score(images, prompts)]
    if name in OF_NETWORKS:
        expected += 2 * [gradient(reward, images)]
    with second_device():
        reward = load(name, GPU)
        found = [reward.score(images, prompts)]
        if name in OF_NETWORKS:
            found += [gradient(reward, images.to(device)) for device in (CPU, GPU)]
    # Attention goes another way there, whose sums are in another order.
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


@pytest.mark.parametrize("name", MEASURES)
def test_diversity_is_that_of_the_cpu(load, name) -> None:
    images = pictures(3, 64, 64)
    expected = load(name, CPU)(images)
    with second_device():
        found = load(name, GPU)(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
