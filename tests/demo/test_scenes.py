"""The demo's scenes say what their prompts say, and its rewards see it, or that it is not so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import scenes
from demo.rewards import composition, compressibility, read_scene
from demo.scenes import COLOURS, SHAPES, SIDE, Prompt, Thing

SEEDS = st.integers(0, 2**32 - 1)


def _drawn(seed: int) -> tuple[Prompt, np.ndarray]:
    rng = np.random.default_rng(seed)
    prompt = scenes.random_prompt(rng, held_out=bool(seed % 2))
    return prompt, np.array(scenes.draw(prompt, rng))


@given(SEEDS)
def test_a_scene_shows_what_its_prompt_says(seed: int) -> None:
    prompt, picture = _drawn(seed)
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
    assert composition(picture, prompt).right
    assert composition(picture, prompt).reward == 1


def _otherwise(prompt: Prompt, seed: int) -> list[Prompt]:
    """Prompts that the scene of `prompt` does not fulfil, each false in one way."""
    rng = np.random.default_rng(seed)
    first = prompt.things[0]
    others = {
        "colour": rng.choice([c for c in COLOURS if c not in {t.colour for t in prompt.things}]),
        "shape": rng.choice([s for s in SHAPES if s not in {t.shape for t in prompt.things}]),
    }
    found = [
        dataclasses.replace(prompt, things=(dataclasses.replace(first, **{name: str(value)}), *prompt.things[1:]))
        for name, value in others.items()
    ]
    if first.size is not None:
        size = {"small": "large", "large": "small"}[first.size]
        found.append(dataclasses.replace(prompt, things=(dataclasses.replace(first, size=size),)))
    if prompt.place is not None:
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top", "middle": "left"}
        found.append(dataclasses.replace(prompt, place=opposite[prompt.place]))
    if prompt.relation is not None:
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        found.append(dataclasses.replace(prompt, relation=opposite[prompt.relation]))
    count = (first,) if len(prompt.things) == 2 else (first, first)
    found.append(Prompt(count, text=""))
    return found


@given(SEEDS)
def test_one_false_statement_is_noticed(seed: int) -> None:
    prompt, picture = _drawn(seed)
    for false in _otherwise(prompt, seed):
        verdict = composition(picture, false)
        assert not verdict.right and verdict.reward < 1, false


@given(SEEDS)
def test_the_order_of_things_does_not_matter(seed: int) -> None:
    prompt, picture = _drawn(seed)
    if len(prompt.things) == 2 and prompt.relation is not None:
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        turned = dataclasses.replace(prompt, things=prompt.things[::-1], relation=opposite[prompt.relation])
        assert composition(picture, turned).right


def _filled(colour: str) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), COLOURS[colour], np.uint8)


def _everything() -> np.ndarray:
    """All colours in all shapes, side by side."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for row, colour in enumerate(COLOURS):
        for column, shape in enumerate(SHAPES):
            centre = (16 + 32 * column, 12 + 21 * row)
            pen.polygon(scenes.outline(shape, centre, 9), fill=COLOURS[colour])
    return np.array(picture)


def _huge(colour: str, shape: str) -> np.ndarray:
    """A shape as large as the picture."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).polygon(scenes.outline(shape, (SIDE / 2, SIDE / 2), SIDE / 2 - 2), fill=COLOURS[colour])
    return np.array(picture)


def test_the_composition_reward_cannot_be_gamed() -> None:
    """What pays without showing what was asked for: colour everywhere, every object at once, one huge object."""
    asked = scenes.prompts(3, 200, held_out=False)
    honest_half = Thing("red", "circle")

    def mean(picture: np.ndarray) -> float:
        return float(np.mean([composition(picture, prompt).reward for prompt in asked]))

    for colour in COLOURS:
        assert mean(_filled(colour)) < 0.25
    assert len(read_scene(_everything())) == len(COLOURS) * len(SHAPES)
    assert mean(_everything()) < 0.1
    # One of two asked objects drawn well is worth more than the same colour and shape filling the picture.
    two = Prompt((honest_half, Thing("blue", "star")), "")
    one_drawn = np.array(scenes.draw(Prompt((honest_half,), ""), np.random.default_rng(0)))
    assert composition(_huge("red", "circle"), two).reward < composition(one_drawn, two).reward < 1


def test_objects_cut_off_by_the_edge_have_no_shape() -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).polygon(scenes.outline("square", (10, 64), 20), fill=COLOURS["red"])
    (found,) = read_scene(np.array(picture))
    assert found.colour == "red" and found.shape is None


@pytest.mark.parametrize("plain", ["white", "gray", "black", "#e0d8d0"])
def test_an_empty_picture_has_no_objects_and_next_to_no_reward(plain: str) -> None:
    from PIL import Image

    picture = np.array(Image.new("RGB", (SIDE, SIDE), plain))
    assert read_scene(picture) == []
    for prompt in scenes.prompts(0, 50, held_out=False):
        assert composition(picture, prompt).reward == 0


def test_compressibility_prefers_the_simpler_picture() -> None:
    thing = Thing("blue", "square")
    rng = np.random.default_rng(0)

    def mean(background: str) -> float:
        prompt = Prompt((thing,), "", background=background)
        return float(np.mean([compressibility(np.array(scenes.draw(prompt, rng))) for _ in range(20)]))

    noise = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    assert 0 > mean("plain") > mean("striped") > compressibility(noise)


def test_held_out_prompts_are_never_trained_on() -> None:
    """Not only another text: no other wording of the same content either."""

    def contents(held_out: bool) -> set[tuple]:
        found = scenes.prompts(1, 1500, held_out=held_out)
        return {(prompt.things, prompt.place, prompt.relation) for prompt in found}

    assert not contents(True) & contents(False)


@settings(max_examples=20)
@given(SEEDS)
def test_prompts_are_the_same_for_the_same_seed_and_differ_from_each_other(seed: int) -> None:
    found = scenes.prompts(seed, 40, held_out=True)
    assert found == scenes.prompts(seed, 40, held_out=True)
    assert len({prompt.text for prompt in found}) == 40
    assert found[:10] == scenes.prompts(seed, 10, held_out=True)


@given(SEEDS)
def test_a_prompt_names_its_things(seed: int) -> None:
    prompt, _ = _drawn(seed)
    for thing in prompt.things:
        assert f"{thing.colour} {thing.shape}" in prompt.text
        assert (thing.size or "") in prompt.text
