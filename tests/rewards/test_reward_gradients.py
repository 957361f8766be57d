"""The gradient of a reward with respect to the picture: of the very function that `score` is, without its 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import numpy as np
import pytest
import reward_oracles as oracles
import torch
from PIL import Image
from torch import Tensor

import tiny_rewards as tiny
from pictures import pictures
from without_host import pixels, preparation

PROMPTS = ["a red cat", "a blue dog on the mat", "the cat", "a red cat"]
WITH_GRADIENT = ["pickscore", "imagereward", "hps_v2.1", "mps", "aesthetic", "clip_score"]
WITHOUT_GRADIENT = ["jpeg_compressibility", "jpeg_incompressibility"]
SIZES = [(64, 64), (90, 61), (61, 90), (28, 28), (20, 33), (77, 200)]


@pytest.fixture(autouse=True)
def _gradients(_inference_mode: None) -> Iterator[None]:
    """The other tests run in inference mode, as the host runs nodes."""
    with torch.inference_mode(False):
        yield


@pytest.fixture
def load(rlg: SimpleNamespace, reward_models: Path) -> Callable[[str], Any]:
    """A reward by name; all weights are there."""
    tiny.write_all(reward_models, rlg.module("rewards.clip").from_open_clip)
    return lambda name: rlg.module("rewards.registry").load(name, None)


def _gradient(reward: Any, images: Tensor, prompts: list[str], upstream: Tensor | None = None) -> Tensor:
    images = images.clone().requires_grad_()
    scores = reward.gradient_score(images, prompts)
    (gradient,) = torch.autograd.grad(scores, images, torch.ones_like(scores) if upstream is None else upstream)
    return gradient


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_the_differentiable_score_is_the_score(load: Callable, name: str) -> None:
    """Of pictures that 8 bits can hold and that need no resizing; HPS resizes floats, so there any size will do."""
    reward = load(name)
    images = pictures(4, *(40, 33) if name == "hps_v2.1" else (28, 28))
    expected = reward.score(images, PROMPTS)
    for asked in (images, images.clone().requires_grad_(), images.double()):
        found = reward.gradient_score(asked, PROMPTS)
        assert found.dtype is torch.float32 and found.requires_grad == asked.requires_grad
        torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("rounding", ["torchvision", "transformers"])
def test_the_cut_square_is_pillows_but_for_8_bits(height: int, width: int, rounding: str) -> None:
    """Also of noise, where bicubic overshoots and Pillow cuts off."""
    prepare, std = preparation.crop(28, rounding), torch.tensor(pixels.CLIP_STD).view(3, 1, 1)
    for image in (pictures(1, height, width), _smooth(height, width)):
        image = torch.round(image * 255) / 255
        difference = (prepare.differentiable(image) - prepare.published(image)) * std * 255
        assert difference.abs().max() < 1.6  # half a level of each of Pillow's two passes, and what bicubic makes of it
        assert difference.mean().abs() < 0.05


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resizing_is_pillows_on_floats(height: int, width: int) -> None:
    image = _smooth(height, width)
    shape = pixels.shorter_side(height, width, 28)
    channels = [Image.fromarray(channel.numpy()) for channel in image[0].movedim(-1, 0)]
    resized = torch.stack(
        [torch.from_numpy(np.array(c.resize(shape[::-1], Image.Resampling.BICUBIC))) for c in channels]
    )
    top, left = ((length - 28) // 2 for length in shape)
    expected = resized[:, top : top + 28, left : left + 28]
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (oracles.STD, oracles.MEAN))
    found = preparation.crop(28, "transformers").differentiable(image)[0] * std + mean
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def _smooth(height: int, width: int) -> Tensor:
    """A picture without edges, which bicubic resizing leaves between 0 and 1."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return torch.stack([0.1 + 0.8 * x * y, 0.5 + 0.4 * torch.sin(3 * x + 2 * y), 0.2 + 0.3 * (x + y)], -1)[None]


def _oracle(name: str, folder: Path, images: Tensor) -> Tensor:
    """Scores by the published models written out, or by transformers' own, differentiable."""
    if name == "imagereward":
        known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.write_vocabulary(folder / "vocab.txt")]
        rows = [[known.index(word) for word in ["[CLS]", *prompt.split(), "[SEP]"]] for prompt in PROMPTS]
        encoded = torch.tensor([row + [0] * (35 - len(row)) for row in rows])
        return oracles.image_reward(tiny.image_reward_state(), images, encoded, (encoded != 0).long(), heads=1)
    if name == "hps_v2.1":
        return oracles.open_clip_cosines(tiny.open_clip_state(3), images, oracles.clip_tokens(PROMPTS), heads=1)
    if name == "mps":
        return oracles.mps(*tiny.mps_states(), images, PROMPTS)
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder / ("PickScore_v1" if name == "pickscore" else "clip-vit-large-patch14"))
    found = clip.eval()(input_ids=oracles.clip_tokens(PROMPTS), pixel_values=oracles.pixels(images))
    if name == "pickscore":
        return found.logits_per_image.diagonal()
    if name == "clip_score":
        return 100 * torch.cosine_similarity(found.image_embeds, found.text_embeds)
    vectors = torch.nn.functional.normalize(found.image_embeds, dim=-1)
    return oracles.linear_head(tiny.head_state(tiny.JOINT), "layers", vectors)


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_the_gradient_is_that_of_the_published_model(load: Callable, reward_models: Path, name: str) -> None:
    images, upstream = pictures() * 0.98 + 0.01, torch.tensor([1.0, -2.0, 0.5, 3.0])
    asked = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(_oracle(name, reward_models, asked), asked, upstream)
    found = _gradient(load(name), images, PROMPTS, upstream)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_the_gradient_is_that_of_finite_differences(load: Callable, name: str) -> None:
    """Through the resizing as well, in a direction that hits every pixel."""
    reward, images = load(name), pictures(2, 40, 33) * 0.9 + 0.05
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    step = 2e-3
    ahead, behind = (reward.gradient_score(images + s * direction, PROMPTS[:2]) for s in (step, -step))
    expected = (ahead - behind) / (2 * step)
    found = (_gradient(reward, images, PROMPTS[:2]) * direction).sum((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_a_gradient_does_not_depend_on_its_batch(load: Callable, name: str) -> None:
    reward, images = load(name), pictures(4, 40, 33)
    together = _gradient(reward, images, PROMPTS)
    alone = torch.cat([_gradient(reward, images[i : i + 1], [PROMPTS[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5 * together.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_the_gradient_is_there_in_inference_mode_too(load: Callable, name: str) -> None:
    """The host runs nodes in it: there the reward is loaded and scores before a trainer asks for a gradient."""
    with torch.inference_mode():
        reward, images = load(name), pictures()
        scores = reward.score(images, PROMPTS)
        torch.testing.assert_close(reward.gradient_score(images, PROMPTS), scores, atol=1e-5, rtol=1e-5)
        with torch.inference_mode(False):
            inside = _gradient(reward, pictures(), PROMPTS)
    assert torch.equal(inside, _gradient(reward, pictures(), PROMPTS)) and inside.abs().max() > 0


def test_the_host_may_take_the_model_away_before_backward(load: Callable) -> None:
    """A trainer goes back through the decoder and the model; nothing of the reward has to stay for that."""
    reward, images = load("pickscore"), pictures().requires_grad_()
    scores = reward.gradient_score(images, PROMPTS)
    comfy.model_management.unload_all_models()
    for parameter in reward._clip._model.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)
    scores.sum().backward()
    assert torch.equal(images.grad, _gradient(load("pickscore"), pictures(), PROMPTS))


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_weights_stay_frozen_and_without_gradient(load: Callable, name: str) -> None:
    reward, images = load(name), pictures().requires_grad_()
    reward.gradient_score(images, PROMPTS).sum().backward()
    networks = [reward._managed._patcher.model, *([reward._head] if name == "aesthetic" else [])]
    weights = [weight for network in networks for weight in network.parameters()]
    assert weights and not any(weight.requires_grad or weight.grad is not None for weight in weights)
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_what_a_score_refuses_its_gradient_refuses(load: Callable, name: str) -> None:
    reward = load(name)
    assert reward.gradient_score(pictures(0).requires_grad_(), []).shape == (0,)
    with pytest.raises(ValueError, match=r"prompts: there are 1 of them for 4 images"):
        reward.gradient_score(pictures(), ["one"])
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        reward.gradient_score(pictures().requires_grad_(), PROMPTS)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_a_reward_without_gradient_says_so_before_anything_is_computed(load: Callable, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^reward: {name} has no gradient; .*Flow-GRPO"):
        load(name).gradient_score(pictures(0), [])
