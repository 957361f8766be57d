"""GenEval's reward: what a prompt asks for, what a detector finds, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reward_oracles as oracles
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny_rewards as tiny
from pictures import pictures
from without_host import geneval_prompt, pixels

Asked = geneval_prompt.Asked
DETECTOR = "mask2former-swin-small-coco-instance"


@pytest.fixture
def geneval(rlg: SimpleNamespace) -> Any:
    return rlg.module("rewards.geneval")


@pytest.fixture
def reward(rlg: SimpleNamespace, reward_models: Path) -> Any:
    tiny.write_detector(reward_models / DETECTOR)
    tiny.write_clip_l(reward_models)
    return rlg.module("rewards.registry").load("geneval", None)


# The prompt: written as GenEval's create_prompts.py writes it.


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _written(one: Asked) -> str:
    words = one.name if one.colour is None else f"{one.colour} {one.name}"
    if one.count == 1:
        return _article(words)
    plural = f"{words}es" if words.endswith("s") else f"{words}s"
    return f"{geneval_prompt.NUMBERS[one.count - 1]} {plural}"


OBJECTS = st.sampled_from(geneval_prompt.OBJECTS)
CLAUSES = st.builds(
    Asked, OBJECTS, st.integers(1, 10), st.none() | st.sampled_from(geneval_prompt.COLOURS)
)  # fmt: skip


@given(st.lists(CLAUSES, min_size=1, max_size=4, unique_by=lambda one: one.name))
def test_objects_are_read_as_they_were_written(asked: list[Asked]) -> None:
    assert geneval_prompt.parse(f"a photo of {' and '.join(map(_written, asked))}") == tuple(asked)


@given(st.lists(CLAUSES, min_size=2, max_size=2, unique_by=lambda one: one.name), st.sampled_from(["left of", "below"]))
def test_what_others_are_placed_by_comes_first(pair: list[Asked], relation: str) -> None:
    placed, by = pair
    found = geneval_prompt.parse(f"a photo of {_written(placed)} {relation} {_written(by)}")
    assert found == (by, Asked(placed.name, placed.count, placed.colour, (relation, 0)))


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda text: f"a photo of {text}"))
def test_any_other_text_is_one_sentence(text: str) -> None:
    try:
        assert geneval_prompt.parse(text)
    except ValueError as error:
        assert str(error).startswith("prompts: geneval cannot check ")
        assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a photo of two red apples and a dog", (Asked("apple", 2, "red"), Asked("dog"))),
        ("A photo of an orange orange.", (Asked("orange", 1, "orange"),)),
        ("a photo of an orange", (Asked("orange"),)),
        ("a photo of three sandwiches", (Asked("sandwich", 3),)),
        ("a photo of two people and four sheep", (Asked("person", 2), Asked("sheep", 4))),
        ("a photo of a black  scissors", (Asked("scissors", 1, "black"),)),
        ("a photo of a tv remote above a tv", (Asked("tv"), Asked("tv remote", place=("above", 0)))),
    ],
)
def test_prompts_of_the_templates(prompt: str, asked: tuple[Asked, ...]) -> None:
    assert geneval_prompt.parse(prompt) == asked


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a dog", "it does not begin with 'a photo of'"),
        ("a photo of a dragon", "'dragon' is none of the 80 objects"),
        ("a photo of dogs", "'dogs' is not a number or article"),
        ("a photo of a red apple and a green apple", "names the same object twice"),
        ("a photo of a cat and a dog left of a car", "'left of' stands between more than two"),
        ("a photo of a cat left of", "'cat left of' is none"),
    ],
)
def test_prompts_outside_the_templates_say_why(prompt: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^prompts: geneval cannot check '") as caught:
        geneval_prompt.parse(prompt)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# What is found, and what it is worth.


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), set()),  # the same place
        ((20, 0, 30, 10), {"right of"}),
        ((-20, 0, -10, 10), {"left of"}),
        ((0, 20, 10, 30), {"below"}),
        ((0, -20, 10, -10), {"above"}),
        ((20, 20, 30, 30), {"right of", "below"}),
        ((2, 0, 12, 10), set()),  # 2 pixels apart is what a tenth of 10 + 10 explains
        ((5, 0, 15, 10), {"right of"}),  # (5 - 2) / 5 = .6
        ((3.9, 0, 13.9, 10), set()),  # (3.9 - 2) / 3.9 < .5
    ],
)
def test_relations_by_hand(geneval: Any, box: tuple, expected: set) -> None:
    assert geneval.relations(box, (0, 0, 10, 10)) == expected


def _found(rlg: SimpleNamespace, left: float = 0, score: float = 0.95) -> Any:
    return rlg.module("rewards.object_detector").Found((left, 0, left + 10, 10), score, np.ones((10, 10), bool))


DOG, TWO_DOGS, RED_DOG = Asked("dog"), Asked("dog", 2), Asked("dog", 1, "red")
TWO_RED_DOGS = Asked("dog", 2, "red")
CAT_RIGHT = Asked("cat", place=("right of", 0))


@pytest.mark.parametrize(
    ("asked", "dogs", "cats", "colours", "expected"),
    [
        ([DOG], [0], [], "", 1),
        ([DOG], [], [], "", 0),
        ([DOG], [0, 30], [], "", 0),
        ([DOG], [0, 30, 60], [], "", -1),  # three times as many
        ([TWO_DOGS], [0], [], "", 0.5),
        ([TWO_DOGS, Asked("cat")], [0, 30], [60], "", 1),
        ([TWO_DOGS, Asked("cat")], [0], [60], "", 0.75),
        ([RED_DOG], [0], [], ["red"], 1),
        ([RED_DOG], [0], [], ["blue"], 0.5),
        ([RED_DOG], [], [], [], 0),
        ([TWO_RED_DOGS], [0, 30], [], ["red", "blue"], 0.75),
        ([DOG, CAT_RIGHT], [0], [60], "", 1),
        ([DOG, CAT_RIGHT], [60], [0], "", 0.75),  # both are there: 1, 1, 0, 1
        ([DOG, CAT_RIGHT], [], [0], "", 1 / 3),  # nothing to be placed by: 0, 1, 0
        ([DOG, CAT_RIGHT], [0], [], "", 1 / 3),  # nothing to place: 1, 0, 0
        ([RED_DOG, CAT_RIGHT], [0], [60], ["blue"], 0.5),  # 1, 0 for the dog, 1, 0 for the cat
    ],
)
def test_grades_are_flow_grpos(
    rlg: SimpleNamespace, geneval: Any, asked: list, dogs: list, cats: list, colours: list, expected: float
) -> None:
    """Each by hand from `evaluate_reward` of yifan123/reward-server."""
    found = {"dog": [_found(rlg, left) for left in dogs], "cat": [_found(rlg, left) for left in cats]}
    assert geneval.grade(asked, found, lambda name, objects: list(colours)) == pytest.approx(expected)


def test_counting_takes_surer_objects_and_no_more_than_sixteen(rlg: SimpleNamespace, geneval: Any) -> None:
    unsure = {"dog": [_found(rlg, score=0.5), _found(rlg, score=0.5)]}
    assert geneval.grade([TWO_DOGS], unsure, None) == 0
    assert geneval.grade([DOG], {"dog": unsure["dog"][:1]}, None) == 1
    many = {"dog": [_found(rlg) for _ in range(40)]}
    assert geneval.grade([DOG], many, None) == geneval.GenEval.range[0] == -14


class Rigged(torch.nn.Module):
    """A detector that finds given rectangles of its input, in quarters of its pixels as Mask2Former does."""

    def __init__(self, objects: list[tuple[int, float, tuple[int, int, int, int]]]) -> None:
        super().__init__()
        self._objects = objects

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> SimpleNamespace:
        height, width = (length // 4 for length in pixel_values.shape[-2:])
        classes, masks = torch.zeros(1, 12, 81), torch.full((1, 12, height, width), -100.0)
        classes[..., 80] = 100
        for query, (label, probability, (left, top, right, bottom)) in enumerate(self._objects):
            classes[0, query] = torch.tensor([1e-9] * 81).log()
            classes[0, query, label] = np.log(probability)
            classes[0, query, 80] = np.log(1 - probability)
            masks[0, query, top // 4 : bottom // 4, left // 4 : right // 4] = 100
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def test_boxes_are_those_of_the_masks_at_the_pictures_size(reward: Any) -> None:
    """The picture of 64 x 96 needs no resizing; rectangles on the grid of the masks are known."""
    reward._detector._model = Rigged([(16, 0.95, (8, 16, 40, 48)), (15, 0.5, (48, 8, 88, 40)), (0, 0.2, (0, 0, 8, 8))])
    (found,) = reward._detector.find([Image.new("RGB", (96, 64))], 0.3)
    assert list(found) == ["dog", "cat"]  # the person is not sure enough
    (dog,), (cat,) = found["dog"], found["cat"]
    assert dog.box == (8, 16, 40, 48) and cat.box == (48, 8, 88, 40)
    assert dog.score == pytest.approx(0.95, abs=0.02) and cat.score == pytest.approx(0.5, abs=0.02)
    assert dog.mask[17:47, 9:39].all() and 30 * 30 < dog.mask.sum() <= 32 * 32  # its corners are rounded


def test_padding_of_the_detectors_input_is_no_part_of_the_picture(reward: Any) -> None:
    reward._detector._model = Rigged([(16, 0.95, (0, 0, 200, 200))])
    (found,) = reward._detector.find([Image.new("RGB", (75, 40))], 0.3)
    assert found["dog"][0].box == (0, 0, 75, 40) and found["dog"][0].mask.shape == (40, 75)


def test_a_rigged_scene_is_worth_what_its_objects_are(reward: Any) -> None:
    reward._detector._model = Rigged([(16, 0.95, (8, 16, 32, 48)), (15, 0.95, (56, 16, 88, 48))])
    asked = {
        "a photo of a dog": 1, "a photo of two dogs": 0.5, "a photo of a dog and a cat": 1,
        "a photo of a dog left of a cat": 1, "a photo of a cat left of a dog": 0.75, "a photo of a bus": 0,
    }  # fmt: skip
    scores = reward.score(torch.rand(6, 64, 96, 3), list(asked))
    assert scores.tolist() == pytest.approx(list(asked.values()))


def test_the_detector_finds_what_mmdetections_postprocessing_finds(reward: Any, reward_models: Path) -> None:
    """`instance_postprocess` of MMDetection's MaskFormerFusionHead, on the outputs of transformers' own model."""
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    folder = reward_models / DETECTOR
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    picture = Image.fromarray((pictures(1, 50, 70)[0] * 255).byte().numpy())
    inputs = Mask2FormerImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt")
    out = model(**inputs)
    probabilities = out.class_queries_logits[0].softmax(-1)[:, :80]
    shape = inputs.pixel_values.shape[-2:]
    seen = inputs.pixel_mask[0].nonzero().amax(0) + 1
    expected = []
    for flat in probabilities.flatten().argsort(descending=True)[:100].tolist():
        query, label = divmod(flat, 80)
        mask = torch.nn.functional.interpolate(out.masks_queries_logits[:, query : query + 1], shape, mode="bilinear")
        mask = torch.nn.functional.interpolate(mask[..., : seen[0], : seen[1]], (50, 70), mode="bilinear")[0, 0]
        if (mask > 0).any():
            score = probabilities[query, label] * mask.sigmoid()[mask > 0].mean()
            rows, columns = (mask > 0).nonzero(as_tuple=True)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            expected.append((geneval_prompt.OBJECTS[label], score.item(), tuple(map(int, box))))
    (found,) = reward._detector.find([picture], 0.0)
    flat = [(name, one.score, one.box) for name, of_name in found.items() for one in of_name]
    assert len(flat) == len(expected) > 10
    for one, other in zip(sorted(flat), sorted(expected), strict=True):
        assert one[0] == other[0] and one[2] == other[2]
        assert one[1] == pytest.approx(other[1], rel=1e-4)


def test_colours_are_clips_zero_shot_classes(reward: Any, reward_models: Path) -> None:
    """As clip_benchmark makes classifiers: unit vectors of the templates, their mean, its unit vector."""
    from transformers import CLIPModel

    picture, found = _scene(reward)
    clip = CLIPModel.from_pretrained(reward_models / "clip-vit-large-patch14").eval()

    def unit(vectors: torch.Tensor) -> torch.Tensor:
        return vectors / vectors.norm(dim=-1, keepdim=True)

    classes = []
    for colour in geneval_prompt.COLOURS:
        texts = [f"a photo of a {colour} dog", f"a photo of a {colour}-colored dog", f"a photo of a {colour} object"]
        read = clip.text_model(oracles.clip_tokens(texts)).pooler_output
        classes.append(unit(unit(clip.text_projection(read)).mean(0)))
    expected = []
    for one in found:
        shown = np.asarray(picture).copy()
        shown[~one.mask] = 0x99
        cut = Image.fromarray(shown).crop(one.box)
        prepared = pixels.cropped(torch.from_numpy(np.array(cut))[None].float() / 255, 28, "torchvision")
        seen = unit(clip.visual_projection(clip.vision_model(prepared).pooler_output))
        expected.append(geneval_prompt.COLOURS[(seen @ torch.stack(classes).T).argmax()])
    assert reward._colours(picture, "dog", found) == expected


def _scene(reward: Any) -> tuple[Image.Image, list[Any]]:
    generator = torch.Generator().manual_seed(4)
    boxes = torch.randint(0, 32, (8, 2), generator=generator) // 4 * 4
    reward._detector._model = Rigged([(16, 0.95, (x, y, x + 24, y + 32)) for x, y in boxes.tolist()])
    picture = Image.fromarray((pictures(1, 64, 96, seed=3)[0] * 255).byte().numpy())
    (found,) = reward._detector.find([picture], 0.3)
    return picture, found["dog"]


def test_a_grade_does_not_depend_on_its_batch(reward: Any) -> None:
    images, prompts = pictures(3, 40, 56), ["a photo of a dog", "a photo of a red cat and two dogs", "a photo of a cup"]
    together = reward.score(images, prompts)
    assert together.dtype is torch.float32 and together.shape == (3,)
    alone = [reward.score(images[n : n + 1], prompts[n : n + 1]) for n in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert reward.score(images[:0], []).shape == (0,)
    with pytest.raises(ValueError, match="prompts: there are 1 of them for 3 images"):
        reward.score(images, prompts[:1])


def test_it_has_no_gradient_and_says_what_it_needs(rlg: SimpleNamespace, reward: Any, reward_models: Path) -> None:
    with pytest.raises(ValueError, match=r"^reward: geneval has no gradient"):
        reward.gradient_score(pictures(0), [])
    with pytest.raises(ValueError, match=r"^prompts: geneval cannot check 'a dog'"):
        reward.check_prompts(["a photo of a dog", "a dog"])
    load: Callable = rlg.module("rewards.registry").load
    tiny.write_detector(reward_models / "other", classes=3)
    with pytest.raises(ValueError, match=r"^file: 'other' finds 3 kinds of objects instead of COCO's 80"):
        load("geneval", "other")
    (reward_models / DETECTOR / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=rf"^file: '{DETECTOR}' lacks preprocessor_config.json"):
        load("geneval", DETECTOR)
    with pytest.raises(ValueError, match=r"^file: 'clip-vit-large-patch14' "):
        load("geneval", "clip-vit-large-patch14")
