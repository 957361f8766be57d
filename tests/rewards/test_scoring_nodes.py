"""The nodes for scoring, diversity, curves and choices: lists in and out, and each measure against its definition."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reward_oracles as oracles
import torch

import tiny_rewards as tiny
from demo.graphs import Setting
from demo.measure import Measured
from demo.rewards import composition
from demo.scenes import Prompt, draw
from demo.scenes import prompts as demo_prompts
from pictures import pictures, run_node_saved
from without_host import pixels

LABELS = [f"scale {scale}, picture {n}, seed 7" for scale in ("0", "1.6") for n in (1, 2)]


@pytest.fixture
def jpeg(run_node: Callable) -> Any:
    return run_node("RLGLoadReward", name="jpeg_compressibility", file="auto")[0]


def _score(run_node: Callable, images: Any, prompt: Any, reward: Any) -> tuple:
    return run_node("RLGScore", images=images, prompt=prompt, reward=[reward])


def test_one_prompt_or_one_per_batch_or_one_per_picture(run_node: Callable, jpeg: Any) -> None:
    batches = [pictures(1, seed=1), pictures(3, 20, 30, seed=2)]
    one = _score(run_node, batches, ["p"], jpeg)
    assert len(one[0]) == 4 and one[3] == ["p"] * 4
    assert one[1] == pytest.approx(sum(one[0]) / 4)
    assert "jpeg_compressibility" in one[2] and len(one[2].splitlines()) == 5
    assert _score(run_node, batches, ["p", "q"], jpeg)[3] == ["p", "q", "q", "q"]
    assert _score(run_node, batches, list("abcd"), jpeg)[3] == list("abcd")
    with pytest.raises(ValueError, match="prompt: there are 3 of them for 4 images in 2 batches"):
        _score(run_node, batches, list("abc"), jpeg)


def test_no_pictures_are_refused(run_node: Callable, jpeg: Any) -> None:
    with pytest.raises(ValueError, match="images: there are none"):
        _score(run_node, [pictures(0)], ["p"], jpeg)


class Composition:
    """The demo's own reward, as one that anybody may add: RLG Score takes whatever keeps the protocol."""

    name, unit, range, source = "composition", "share of the prompt", (0.0, 1.0), "the demo"

    def __init__(self, asked: list[Prompt]) -> None:
        self._asked = {prompt.text: prompt for prompt in asked}

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scored = zip(pixels.pictures(images), prompts, strict=True)
        return torch.tensor([composition(np.asarray(picture), self._asked[text]).reward for picture, text in scored])


@pytest.mark.parametrize("lora", ["compressibility", "composition"])
def test_the_curve_of_the_nodes_is_the_demos_own_measurement(run_node: Callable, jpeg: Any, lora: str) -> None:
    """The demo takes the PNG files that ComfyUI writes; reward and diversity must not differ from that."""
    asked, rng = demo_prompts(0, 2, held_out=True), np.random.default_rng(0)
    # (scales, prompts, seeds): at the first scale of something else, at the second of what was asked for.
    drawn = np.array([[[draw(p, rng) for _ in range(2)] for p in of_scale] for of_scale in (asked[::-1], asked)])
    images = torch.from_numpy(drawn.reshape(8, *drawn.shape[3:])).float() / 255 + 0.001
    saved = np.stack(run_node_saved(run_node, images)).reshape(drawn.shape)
    expected = Measured(lora, (Setting(0.0), Setting(1.0)), tuple(asked), saved)
    rewards, diversities = expected.rewards.mean(axis=(1, 2)), expected.diversity.mean(axis=(1, 2))

    labels = [f"scale {scale}, picture {n}, seed 7" for scale in (0, 1) for _ in asked for n in (1, 2)]
    reward = jpeg if lora == "compressibility" else Composition(asked)
    texts = [prompt.text for _ in range(2) for prompt in asked for _ in range(2)]
    scores, _, _, prompts = _score(run_node, [images], texts, reward)
    diversity, *_ = run_node(
        "RLGDiversity", images=[images], labels=labels, measure=["pixels"], file=["auto"], prompts=prompts
    )
    _, text = run_node(
        "RLGPlot", scores=scores, labels=labels, theme=["dark"], reward_name=[lora], title=[""], diversity=diversity,
        prompts=prompts,
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["scale"]) for row in rows] == [setting.scale for setting in expected.settings]
    for row, of_reward, of_diversity in zip(rows, rewards, diversities, strict=True):
        assert float(row["reward"]) == pytest.approx(of_reward, rel=1e-5)
        assert float(row["diversity"]) == pytest.approx(of_diversity, rel=1e-5)
    assert rewards[0] != rewards[1]


def test_the_plot_is_an_image_in_both_themes(run_node: Callable) -> None:
    inputs = {"scores": [1.0, 2.0, 3.0, 4.0], "labels": LABELS, "reward_name": ["r"], "title": ["t"]}
    light, _ = run_node("RLGPlot", theme=["light"], **inputs)
    dark, _ = run_node("RLGPlot", theme=["dark"], **inputs)
    assert light.shape == dark.shape and light.shape[0] == 1 and light.shape[-1] == 3
    assert light.mean() > 0.8 and dark.mean() < 0.3


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_runs(
    rlg: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when its turn comes, after the sweep and its scores."""
    plot = rlg.nodes["RLGPlot"]
    assert plot.validate_inputs(title="") is True
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot.validate_inputs(title="").startswith("plots need the Python package matplotlib")


def _pairwise_mean(distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], items: torch.Tensor) -> float:
    pairs = [(i, j) for i in range(len(items)) for j in range(i)]
    return sum(distance(items[i], items[j]).item() for i, j in pairs) / len(pairs)


def _cosine_distance(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return 1 - torch.cosine_similarity(one, two, dim=-1)


def test_clip_diversity_is_the_mean_of_pairwise_cosine_distances(
    run_node: Callable,
    reward_models: Path,
) -> None:
    from transformers import CLIPModel

    tiny.write_clip(reward_models / "clip-vit-large-patch14")
    images = pictures(5)
    labels = [f"branch {n}" for n in range(5)]
    values, mean, text = run_node(
        "RLGDiversity", images=[images], labels=labels, measure=["clip"], file=["clip-vit-large-patch14"]
    )
    model = CLIPModel.from_pretrained(reward_models / "clip-vit-large-patch14").eval()
    vectors = model.visual_projection(model.vision_model(oracles.pixels(images)).pooler_output)
    expected = _pairwise_mean(_cosine_distance, vectors)
    assert mean == pytest.approx(expected, abs=1e-5) and len(values) == 5
    assert "all: " in text


def test_dino_diversity_is_the_mean_of_pairwise_cosine_distances(run_node: Callable, reward_models: Path) -> None:
    from torchvision.transforms import v2 as transforms
    from transformers import Dinov2Model

    tiny.write_dinov2(reward_models / "dinov2-base")
    images = pictures(3, 300, 260)
    _, mean, _ = run_node(
        "RLGDiversity", images=[images], labels=["scale 1"] * 3, measure=["dino"], file=["auto"], prompts=["a"]
    )
    published = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files = [transforms.functional.to_pil_image((image * 255).to(torch.uint8).movedim(-1, 0)) for image in images]
    model = Dinov2Model.from_pretrained(reward_models / "dinov2-base").eval()
    vectors = model(torch.stack([published(file) for file in files])).last_hidden_state[:, 0]
    assert mean == pytest.approx(_pairwise_mean(_cosine_distance, vectors), abs=1e-5)


def test_equal_pictures_have_no_diversity_and_only_those_of_one_prompt_and_scale_are_compared(
    run_node: Callable,
) -> None:
    black, white = torch.zeros(2, 8, 8, 3), torch.ones(2, 8, 8, 3)
    inputs = {"images": [torch.cat([black, white])], "measure": ["pixels"], "file": ["auto"]}
    assert run_node("RLGDiversity", labels=LABELS, **inputs)[0] == [0.0] * 4
    mixed = [LABELS[0], LABELS[2], LABELS[1], LABELS[3]]
    assert run_node("RLGDiversity", labels=mixed, **inputs)[0] == pytest.approx([1.0] * 4)
    same_scale = {"labels": ["scale 1"] * 4, **inputs}
    assert run_node("RLGDiversity", prompts=list("aabb"), **same_scale)[0] == [0.0] * 4
    assert run_node("RLGDiversity", **same_scale)[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["scale 0", "scale 1"]}, "only 1 of scale 0.*raise the batch size"),
        ({"labels": ["scale 0"]}, "labels: there are 1 of them for 2 images"),
        ({"images": [pictures(1, 8, 8), pictures(1, 8, 9)], "labels": ["a", "a"]}, "different sizes"),
        ({"measure": ["clip"]}, "openai/clip-vit-large-patch14"),
        ({"measure": ["dino"]}, "facebook/dinov2-base"),
        ({"measure": ["lpips"]}, "alexnet-owt"),
    ],
)
def test_a_diversity_that_cannot_be_measured_is_one_sentence(
    run_node: Callable,
    reward_models: Path,
    changes: dict,
    words: str,
) -> None:
    inputs = {"images": [pictures(2)], "labels": ["scale 1"] * 2, "measure": ["pixels"], "file": ["auto"]}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run_node("RLGDiversity", **inputs | changes)


def test_another_model_is_no_dino(run_node: Callable, reward_models: Path) -> None:
    tiny.write_other_model(reward_models / "bert")
    inputs = {"images": [pictures(2)], "labels": ["scale 1"] * 2, "measure": ["dino"], "file": ["bert"]}
    with pytest.raises(ValueError, match="'bert' holds another model"):
        run_node("RLGDiversity", **inputs)


@pytest.mark.parametrize(
    ("measure", "library", "package"),
    [("lpips", "lpips", "lpips"), ("vendi_clip", "vendi_score", "vendi-score")],
)
def test_a_measure_without_its_library_says_what_to_install(
    rlg: SimpleNamespace,
    run_node: Callable,
    reward_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    measure: str,
    library: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (reward_models / "alexnet-owt-7be5be79.pth").write_bytes(b"")
    (reward_models / "clip-vit-large-patch14").mkdir()
    (reward_models / "clip-vit-large-patch14" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"pip install {package}"):
        run_node("RLGDiversity", images=[pictures(2)], labels=["a", "a"], measure=[measure], file=["auto"])


def test_the_vendi_score_counts_different_pictures(run_node: Callable, reward_models: Path) -> None:
    pytest.importorskip("vendi_score")
    tiny.write_clip(reward_models / "clip-vit-large-patch14")
    same = pictures(1).expand(4, -1, -1, -1)
    inputs = {"labels": ["a"] * 4, "measure": ["vendi_clip"], "file": ["auto"]}
    assert run_node("RLGDiversity", images=[same], **inputs)[1] == pytest.approx(1.0, abs=1e-3)
    assert 1.0 < run_node("RLGDiversity", images=[pictures(4)], **inputs)[1] <= 4.0


def test_lpips_is_that_of_its_package(run_node: Callable, reward_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an AlexNet of random weights; the package would download its own."""
    lpips = pytest.importorskip("lpips")
    import torchvision

    alexnet = torchvision.models.alexnet(weights=None)
    torch.save(alexnet.state_dict(), reward_models / "alexnet-owt-7be5be79.pth")
    images = pictures(3, 80, 96)
    _, mean, _ = run_node("RLGDiversity", images=[images], labels=["a"] * 3, measure=["lpips"], file=["auto"])
    monkeypatch.setattr(lpips.pretrained_networks.tv, "alexnet", lambda **_: alexnet)
    published = lpips.LPIPS(net="alex", verbose=False).eval()
    expected = _pairwise_mean(lambda one, two: published(one[None], two[None]), images.movedim(-1, 1) * 2 - 1)
    assert mean == pytest.approx(expected, rel=1e-4) and expected > 0


@pytest.mark.parametrize(("side", "pairs"), [(512, 6), (1024, 3)])
def test_lpips_asks_for_the_memory_of_pictures_of_their_size(
    rlg, reward_models: Path, monkeypatch: pytest.MonkeyPatch, side: int, pairs: int
) -> None:
    """It sees whole pictures; so many pairs of them as a GB holds at once."""
    pytest.importorskip("lpips")
    import comfy.model_management
    import torchvision

    path = reward_models / "alexnet-owt-7be5be79.pth"
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    measure = rlg.module("rewards.lpips_distance").LpipsDistance(path)
    asked, together = [], []
    own = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, memory_required=0, **more: (
            asked.append(memory_required) or own(models, memory_required=0, **more)
        ),
    )
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 10**9)
    monkeypatch.setattr(
        type(measure._model), "forward", lambda self, one, two: together.append(len(one)) or torch.zeros(len(one))
    )
    measure.pairwise(torch.zeros(4, side, side, 3))
    assert max(together) == pairs and sum(together) == 6
    assert asked[0] >= 6 * 250 * side**2


def test_the_best_come_first_with_their_labels_and_places(run_node: Callable) -> None:
    images = pictures(4)
    best, labels, indices = run_node(
        "RLGPickBest", images=[images[:1], images[1:]], scores=[2.0, 9.0, 1.0, 5.0], count=[2], labels=LABELS
    )
    assert torch.equal(best, images[[1, 3]])
    assert labels == [LABELS[1], LABELS[3]] and indices == [1, 3]
    _, names, _ = run_node("RLGPickBest", images=[images], scores=[2.0, 9.0, 1.0, 5.0], count=[1])
    assert names == ["picture 2"]


def test_the_best_of_one_scale_is_found_by_its_label(run_node: Callable) -> None:
    labels = [
        "cfg 3, scale 1, seed 7",
        "cfg 3, scale 1.6, seed 7",
        "cfg 4, scale 1, seed 7",
        "cfg 4, scale 1.6, seed 7",
    ]
    inputs = {"images": [pictures(4)], "scores": [2.0, 9.0, 1.0, 5.0], "count": [1], "labels": labels}
    for among, index in (("scale 1", 0), ("scale 1.6, cfg 4", 3), ("cfg 4", 3), ("", 1)):
        _, names, indices = run_node("RLGPickBest", among=[among], **inputs)
        assert (names, indices) == ([labels[index]], [index])
    with pytest.raises(ValueError, match="among: no picture's label says 'scale 2'; the first is 'cfg 3, scale 1,"):
        run_node("RLGPickBest", among=["scale 2"], **inputs)


def test_a_second_reward_counts_by_its_weight(run_node: Callable) -> None:
    inputs = {"images": [pictures(3)], "scores": [3.0, 2.0, 1.0], "scores_2": [1000.0, 2000.0, 1500.0], "count": [1]}
    assert run_node("RLGPickBest", weight_2=[0.1], **inputs)[2] == [0]
    assert run_node("RLGPickBest", weight=[0.1], **inputs)[2] == [1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": [1.0]}, "scores: there are 1 of them for 3 images"),
        ({"labels": ["a"]}, "labels: there are 1 of them for 3 images"),
        ({"count": [4]}, "count: 4 images are wanted and there are 3"),
        ({"images": [pictures(1), pictures(2, 9, 9)], "count": [2]}, "different sizes"),
    ],
)
def test_a_choice_that_cannot_be_made_is_one_sentence(run_node: Callable, changes: dict, words: str) -> None:
    inputs = {"images": [pictures(3)], "scores": [3.0, 2.0, 1.0], "count": [1]}
    with pytest.raises(ValueError, match=words):
        run_node("RLGPickBest", **inputs | changes)
