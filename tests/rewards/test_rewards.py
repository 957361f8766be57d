"""Each reward is its published model, whatever else is in the batch, and says so when it cannot be.

The published models are written out in `reward_oracles.py`, or are transformers' own; weights are tiny and random.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reward_oracles as oracles
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from torchvision.transforms import v2 as transforms

import tiny_rewards as tiny
from pictures import pictures, run_node_saved
from without_host import pixels

PROMPTS = ["a red cat", "a blue dog on the mat", "the cat", "a red cat"]
WITH_WEIGHTS = ["pickscore", "imagereward", "hps_v2.1", "mps", "aesthetic", "clip_score"]
WEIGHTLESS = ["jpeg_compressibility", "jpeg_incompressibility"]


@pytest.fixture
def registry(rlg: SimpleNamespace, reward_models: Path) -> Any:
    return rlg.module("rewards.registry")


@pytest.fixture
def filled(rlg: SimpleNamespace, reward_models: Path) -> Path:
    """All weights under their published names."""
    tiny.write_all(reward_models, rlg.module("rewards.clip").from_open_clip)
    return reward_models


def _with_transformers(folder: Path, images: torch.Tensor, prompts: list[str]) -> Any:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    return model(input_ids=oracles.clip_tokens(prompts), pixel_values=oracles.pixels(images))


def test_pickscore_is_the_logit_of_its_clip(registry: Any, reward_models: Path) -> None:
    tiny.write_pickscore(reward_models)
    expected = _with_transformers(reward_models / "PickScore_v1", pictures(), PROMPTS).logits_per_image.diagonal()
    torch.testing.assert_close(registry.load("pickscore", None).score(pictures(), PROMPTS), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


def test_clip_score_is_100_times_the_cosine(registry: Any, reward_models: Path) -> None:
    tiny.write_clip_l(reward_models)
    found = _with_transformers(reward_models / "clip-vit-large-patch14", pictures(), PROMPTS)
    expected = 100 * torch.cosine_similarity(found.image_embeds, found.text_embeds)
    score = registry.load("clip_score", "clip-vit-large-patch14").score(pictures(), PROMPTS)
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=0)


def test_hps_is_the_cosine_of_open_clips_model(registry: Any, reward_models: Path) -> None:
    """From a file under open_clip's names, which transformers calls otherwise."""
    tiny.write_hps(reward_models)
    expected = oracles.open_clip_cosines(tiny.open_clip_state(3), pictures(), oracles.clip_tokens(PROMPTS), heads=1)
    score = registry.load("hps_v2.1", None).score(pictures(), PROMPTS)
    torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01


def test_hps_from_a_hugging_face_folder(registry: Any, reward_models: Path) -> None:
    tiny.write_clip(reward_models / "HPSv2.1", seed=4)
    found = _with_transformers(reward_models / "HPSv2.1", pictures(), PROMPTS)
    expected = torch.cosine_similarity(found.image_embeds, found.text_embeds)
    score = registry.load("hps_v2.1", None).score(pictures(), PROMPTS)
    torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)


def test_hps_reads_quotes_and_entities_as_open_clip_does(registry: Any, reward_models: Path) -> None:
    tiny.write_hps(reward_models)
    hps = registry.load("hps_v2.1", None)
    typographic = hps.score(pictures(1), ["\u201cit\u2019s\u201d a cat &amp; a dog"])
    torch.testing.assert_close(typographic, hps.score(pictures(1), ['"it\'s" a cat & a dog']))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_image_reward_is_blip_with_its_head(registry: Any, reward_models: Path, suffix: str) -> None:
    state = tiny.image_reward_state()
    if suffix == ".pt":
        torch.save(state, reward_models / "ImageReward.pt")
    else:
        save_file(state, reward_models / "ImageReward.safetensors")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.write_vocabulary(reward_models / "vocab.txt")]
    rows = [[known.index(word) for word in ["[CLS]", *prompt.split(), "[SEP]"]] for prompt in PROMPTS]
    encoded = torch.tensor([row + [0] * (35 - len(row)) for row in rows])
    expected = oracles.image_reward(state, pictures(), encoded, (encoded != 0).long(), heads=1)
    score = registry.load("imagereward", None).score(pictures(), PROMPTS)
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-5)
    assert expected.std() > 0.01


def test_aesthetic_is_the_head_on_unit_vectors_of_clip(registry: Any, reward_models: Path) -> None:
    tiny.write_clip_l(reward_models)
    head = tiny.head_state(tiny.JOINT)
    torch.save(head, reward_models / "sac+logos+ava1-l14-linearMSE.pth")
    vectors = _with_transformers(reward_models / "clip-vit-large-patch14", pictures(), PROMPTS).image_embeds
    expected = oracles.linear_head(head, "layers", torch.nn.functional.normalize(vectors, dim=-1))
    score = registry.load("aesthetic", None).score(pictures(), [""] * 4)
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mps_is_the_published_model(rlg: SimpleNamespace, registry: Any, reward_models: Path, suffix: str) -> None:
    """From the whole module that is published, whose classes are not at hand, and from its weights alone."""
    from_open_clip, (clip, cross) = rlg.module("rewards.clip").from_open_clip, tiny.mps_states()
    file = reward_models / f"MPS_overall_checkpoint{suffix}"
    if suffix == ".pth":
        tiny.write_mps(file, from_open_clip)
    else:
        named = {f"model.{key}": value.contiguous() for key, value in from_open_clip(clip).items()}
        save_file(named | {f"cross_model.{key}": value for key, value in cross.items()}, file)
    expected = oracles.mps(clip, cross, pictures(), PROMPTS)
    score = registry.load("mps", None).score(pictures(), PROMPTS)
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-5)
    assert score.std() > 0.1


def test_nothing_that_a_pickled_module_names_is_called(rlg: SimpleNamespace, tmp_path: Path) -> None:
    """A file can name any function of any library; reading one must not run it."""
    called = tmp_path / "called"

    class Hostile(torch.nn.Module):
        def __reduce__(self) -> tuple:
            return pathlib_touch, (called,)

    torch.save(Hostile(), tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="file: 'hostile.pth'"):
        rlg.module("rewards.weights").read_module(tmp_path / "hostile.pth")
    assert not called.exists()


def pathlib_touch(path: Path) -> None:
    path.touch()


SIZES = [(64, 64), (90, 61), (61, 90), (28, 28), (20, 33), (77, 200)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_are_cut_as_torchvision_cuts_them(height: int, width: int) -> None:
    """The preparation of OpenAI's CLIP, ImageReward and the aesthetic predictor, bit for bit."""
    image = pictures(1, height, width)
    published = transforms.Compose(
        [
            transforms.Resize(28, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(28),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(oracles.MEAN, oracles.STD),
        ]
    )
    expected = published(_as_file(image))
    torch.testing.assert_close(pixels.cropped(image, 28, "torchvision")[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_are_cut_as_transformers_cuts_them(height: int, width: int) -> None:
    """The preparation of PickScore and CLIP score, in Pillow as published."""
    import transformers

    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    image = pictures(1, height, width)
    prepared = processor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})(_as_file(image))
    expected = torch.as_tensor(np.array(prepared["pixel_values"]))
    torch.testing.assert_close(pixels.cropped(image, 28, "transformers"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_are_padded_as_hps_pads_them(height: int, width: int) -> None:
    image = pictures(1, height, width)
    scale = 28 / max(height, width)
    size = [round(height * scale), round(width * scale)]
    resized = transforms.functional.resize(image.movedim(-1, 1), size, transforms.InterpolationMode.BICUBIC)
    down, across = 28 - size[0], 28 - size[1]
    padding = [across // 2, down // 2, across - across // 2, down - down // 2]
    expected = transforms.functional.normalize(transforms.functional.pad(resized, padding), oracles.MEAN, oracles.STD)
    torch.testing.assert_close(pixels.padded(image, 28), expected, atol=1e-5, rtol=0)


def _as_file(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).to(torch.uint8).numpy())


def test_jpeg_rewards_are_the_size_of_the_file_that_the_host_saves(registry: Any, run_node: Callable) -> None:
    """The demo measures the pictures that ComfyUI wrote; these nodes the tensors before that."""
    images = torch.rand(3, 40, 56, 3, generator=torch.Generator().manual_seed(5)) * 1.2 - 0.1
    saved = run_node_saved(run_node, images)
    expected = torch.tensor([-oracles.jpeg_kilobytes(picture) for picture in saved])
    torch.testing.assert_close(registry.load("jpeg_compressibility", None).score(images, [""] * 3), expected.float())
    torch.testing.assert_close(registry.load("jpeg_incompressibility", None).score(images, [""] * 3), -expected.float())


@pytest.mark.parametrize("name", [*WITH_WEIGHTS, *WEIGHTLESS])
def test_a_score_does_not_depend_on_its_batch(registry: Any, filled: Path, name: str) -> None:
    reward, images = registry.load(name, None), pictures(4, 40, 33)
    together = reward.score(images, PROMPTS)
    alone = torch.cat([reward.score(images[i : i + 1], [PROMPTS[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    turned = reward.score(images.flip(0), PROMPTS[::-1])
    torch.testing.assert_close(together, turned.flip(0), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", [*WITH_WEIGHTS, *WEIGHTLESS])
def test_every_reward_keeps_the_protocol(registry: Any, filled: Path, name: str) -> None:
    reward = registry.load(name, None)
    assert reward.name == name == name.lower()
    assert reward.unit and reward.source and reward.range[0] < reward.range[1]
    scores = reward.score(pictures(), PROMPTS)
    assert scores.shape == (4,) and scores.dtype is torch.float32 and scores.device.type == "cpu"
    assert ((scores >= reward.range[0] - 1e-3) & (scores <= reward.range[1] + 1e-3)).all()
    assert reward.score(pictures(0), []).shape == (0,)
    assert torch.equal(reward.score(torch.cat([pictures(), torch.ones(4, 28, 28, 1)], -1), PROMPTS), scores)
    with pytest.raises(ValueError, match=r"prompts: there are 1 of them for 4 images"):
        reward.score(pictures(), ["one"])
    with pytest.raises(ValueError, match=r"images: the shape is \(28, 28, 3\)"):
        reward.score(pictures()[0], [""])


@pytest.mark.parametrize("name", [*WITH_WEIGHTS, "geneval"])
def test_all_weights_of_a_reward_are_those_of_its_networks(registry: Any, filled: Path, name: str) -> None:
    """By which a training run sees that its reward is another one."""
    tiny.write_detector(filled / "mask2former-swin-small-coco-instance")
    reward = registry.load(name, None)
    named = {id(parameter) for network in reward.networks for parameter in network.parameters()}
    assert named and {id(parameter) for module in _modules(reward) for parameter in module.parameters()} == named


def _modules(part: Any) -> Iterator[torch.nn.Module]:
    """What an object of the pack holds, however deep."""
    if isinstance(part, torch.nn.Module):
        yield part
    elif ".rewards." in type(part).__module__:
        for inner in vars(part).values():
            yield from _modules(inner)


def test_rewards_that_read_prompts_read_all_of_them(registry: Any, filled: Path) -> None:
    """Also a prompt longer than the model can take."""
    image = pictures(1).expand(3, -1, -1, -1)
    for name in ("pickscore", "imagereward", "hps_v2.1", "mps", "clip_score"):
        scores = registry.load(name, None).score(image, ["a red cat", "a blue dog", "a cat on the mat " * 60])
        assert len(set(scores.tolist())) == 3, name


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_missing_weights_say_what_to_get_and_where_to_put_it(registry: Any, reward_models: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"^file: ") as caught:
        registry.load(name, None)
    published = registry.KINDS[name].weights
    for words in (name, published.what, published.repository, str(reward_models)):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        registry.load(name, "gone.safetensors")


def test_second_files_that_a_reward_needs_are_named_as_well(registry: Any, reward_models: Path) -> None:
    torch.save(tiny.image_reward_state(), reward_models / "ImageReward.pt")
    with pytest.raises(FileNotFoundError, match="vocab.txt.*google-bert/bert-base-uncased"):
        registry.load("imagereward", None)
    torch.save(tiny.head_state(tiny.JOINT), reward_models / "sac+logos+ava1-l14-linearMSE.pth")
    with pytest.raises(FileNotFoundError, match="openai/clip-vit-large-patch14"):
        registry.load("aesthetic", None)


def test_notes_of_macos_are_no_second_file(registry: Any, reward_models: Path) -> None:
    """It writes them beside files on disks of other systems."""
    tiny.write_hps(reward_models)
    (reward_models / "._HPS_v2.1_compressed.pt").write_bytes(b"\0\5\x16\7")
    registry.load("hps_v2.1", None)


def test_two_files_of_the_published_name_are_not_guessed_between(registry: Any, reward_models: Path) -> None:
    tiny.write_hps(reward_models)
    (reward_models / "old").mkdir()
    torch.save(tiny.open_clip_state(), reward_models / "old" / "HPS_v2.1_compressed.pt")
    with pytest.raises(ValueError, match="file: several may be meant"):
        registry.load("hps_v2.1", None)
    assert registry.load("hps_v2.1", str(Path("old") / "HPS_v2.1_compressed.pt"))


def test_weights_are_listed_as_files_and_as_folders_of_hugging_face(rlg: SimpleNamespace, filled: Path) -> None:
    (filled / "read_me.md").write_text("no weights")
    everything = {
        *("PickScore_v1", "clip-vit-large-patch14", "HPS_v2.1_compressed.pt", "ImageReward.pt"),
        "MPS_overall_checkpoint.pth",
        "sac+logos+ava1-l14-linearMSE.pth",
    }
    assert set(rlg.module("rewards.host").weights()) == everything


def test_an_unknown_reward_is_refused(registry: Any) -> None:
    with pytest.raises(ValueError, match="reward: there is no 'beauty'; choose one of pickscore"):
        registry.load("beauty", None)


def _truncated(file: Path) -> None:
    save_file(tiny.open_clip_state(), file)
    file.write_bytes(file.read_bytes()[:5000])


def _code(file: Path) -> None:
    torch.save({"weights": torch.ones(1), "run": print}, file)


def _no_weights(file: Path) -> None:
    torch.save([1, 2, 3], file)


def _lacking(file: Path) -> None:
    state = tiny.open_clip_state()
    del state["ln_final.bias"]
    torch.save(state, file)


def _besides(file: Path) -> None:
    torch.save({**tiny.open_clip_state(), "score_predictor.weight": torch.ones(2)}, file)


def _other_shape(file: Path) -> None:
    torch.save({**tiny.open_clip_state(), "visual.ln_pre.bias": torch.ones(5)}, file)


UNUSABLE = {
    "truncated.safetensors": (_truncated, "cannot be read"),
    "empty.pt": (lambda file: file.write_bytes(b""), "cannot be read"),
    "code.pt": (_code, "cannot be read"),
    "no_weights.pt": (_no_weights, "something else"),
    "lacking.pt": (_lacking, "final_layer_norm.bias"),
    "besides.pt": (_besides, "score_predictor.weight"),
    "other_shape.pt": (_other_shape, "pre_layrnorm.bias"),
    "other.pt": (lambda file: torch.save(tiny.head_state(8), file), "another model"),
    "folder": (tiny.write_other_model, "folder"),
}


@pytest.mark.parametrize("file", UNUSABLE)
@pytest.mark.parametrize("name", ["hps_v2.1", "imagereward", "mps", "aesthetic"])
def test_unusable_weights_are_one_sentence_that_names_the_file(
    registry: Any, reward_models: Path, name: str, file: str
) -> None:
    write, words = UNUSABLE[file]
    write(reward_models / file)
    tiny.write_vocabulary(reward_models / "vocab.txt")
    tiny.write_clip_l(reward_models)
    with pytest.raises(ValueError, match=rf"^file: '{file}' ") as caught:
        registry.load(name, file)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    if name == "hps_v2.1":
        assert words in message


def test_a_clip_that_lacks_weights_is_refused(registry: Any, reward_models: Path) -> None:
    """transformers would fill them with random numbers."""
    tiny.write_pickscore(reward_models)
    file = reward_models / "PickScore_v1" / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"file: 'PickScore_v1' holds another model's weights: it lacks .*layers\.2"):
        registry.load("pickscore", None)


def test_text_rendering_without_its_libraries_says_what_to_install(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ValueError, match="pip install rapidocr onnxruntime rapidfuzz"):
        registry.load("text_rendering", None)


def test_text_rendering_reads_what_is_written(registry: Any) -> None:
    for library in ("rapidocr", "onnxruntime", "rapidfuzz"):
        pytest.importorskip(library)
    image = Image.new("RGB", (320, 120), "white")
    ImageDraw.Draw(image).text((30, 30), "STOP HERE", "black", ImageFont.load_default(48))
    images = torch.from_numpy(np.array(image)).float().div(255).expand(4, -1, -1, -1)
    reward = registry.load("text_rendering", None)
    prompts = ['a sign "Stop here"', "a sign \u201cstop\u201d", 'a sign "STEP HERE"', 'a sign "#####"']
    torch.testing.assert_close(reward.score(images, prompts), torch.tensor([1.0, 1.0, 7 / 8, 0.0]))
    assert reward.score(images[:1].flip(1, 2), prompts[:1]) < 1  # upside down; the authors do not turn it either
    reward.check_prompts(prompts)
    for ask in (reward.check_prompts, lambda asked: reward.score(images[:1], asked)):
        with pytest.raises(ValueError, match="no text in double quotes in 'a sign'"):
            ask(["a sign"])


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("ein Schild \u201eOPEN\u201c neben einem Schild \u201eSHOP\u201c", "OPEN"),
        ("znak \u201eSTOP\u201d", "STOP"),
        ("a sign \u201cstop\u201d", "stop"),
        ('a sign "now" and "then"', "now"),
    ],
)
def test_the_text_asked_for_is_the_first_in_double_quotes_of_any_language(rlg, prompt: str, asked: str) -> None:
    assert rlg.module("rewards.text_rendering")._quoted(prompt) == asked


def test_a_reward_gives_its_memory_back_when_the_host_asks(registry: Any, filled: Path) -> None:
    """The host knows the model as one of its own: it unloads it, and loads it again for the next score."""
    import comfy.model_management

    reward = registry.load("pickscore", None)
    before = reward.score(pictures(), PROMPTS)
    names = [type(loaded.model.model).__name__ for loaded in comfy.model_management.current_loaded_models]
    assert "RewardModel" in names
    comfy.model_management.unload_all_models()
    assert not comfy.model_management.current_loaded_models
    torch.testing.assert_close(reward.score(pictures(), PROMPTS), before)


def test_cancel_stops_a_score(registry: Any, filled: Path) -> None:
    import comfy.model_management

    reward = registry.load("pickscore", None)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        reward.score(pictures(), PROMPTS)
    assert len(reward.score(pictures(), PROMPTS)) == 4
