"""The two rewards of the demo: does a picture show what the prompt says, and how small is it as a JPEG.

Both look at nothing but pixels. The first reads the picture back as a list of objects, as GenEval does with an object
detector, and checks count, colours, shapes, sizes and positions against the prompt.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from demo.scenes import COLOURS, SHAPES, SIDE, Prompt, Thing, outline
from rewards.jpeg import kilobytes

CHROMA = 75
"""Objects differ this much between their strongest and their weakest primary colour (0…255); backgrounds by 40."""
LEAST_AREA = 80
"""Smaller spots of colour, in pixels, are not objects."""
LARGEST_RADIUS = 36.0
"""In pixels; what is larger has no shape: a picture filled with colour shows nothing."""
LEAST_OVERLAP = 0.65
"""Of an object with a perfect drawing of its shape, as intersection over union. Small stars lose their tips in the VAE:
at 0.75 half of those that it decodes would be none."""
SMALL, LARGE = 18.0, 21.0
"""Largest radius of a small and smallest radius of a large object, in pixels."""


@dataclass(frozen=True)
class Found:
    """An object read from a picture; positions and radius (half the bounding box) in pixels."""

    colour: str
    shape: str | None
    """None: none of the shapes, cut off by the edge, or too large."""
    x: float
    y: float
    radius: float


class Judged(NamedTuple):
    """A picture's reward, higher is better, and whether all that was asked for is in it."""

    reward: float
    right: bool


def composition(picture: np.ndarray, prompt: Prompt) -> Judged:
    """Check a picture, (SIDE, SIDE, 3) uint8, against what its prompt says.

    The reward is 0…1: the share of the prompt's statements that hold; with too many objects, times asked / shown.
    """
    found, asked = read_scene(picture), prompt.things
    matched = max((_checks(prompt, arrangement) for arrangement in _arrangements(found, len(asked))), key=sum)
    checks = [len(found) == len(asked), *matched]
    reward = sum(checks) / len(checks) * min(1.0, len(asked) / max(1, len(found)))
    return Judged(reward, right=all(checks))


def compressibility(picture: np.ndarray) -> float:
    """Minus the size of a picture, (height, width, 3) uint8, as a JPEG of quality 95, in kB."""
    return -kilobytes(Image.fromarray(picture))


def read_scene(picture: np.ndarray) -> list[Found]:
    """The objects of a picture, (SIDE, SIDE, 3) uint8: connected areas of strong colour."""
    values = picture.astype(int)
    spots, _ = ndimage.label(np.ptp(values, axis=2) > CHROMA)
    found = []
    for index, box in enumerate(ndimage.find_objects(spots), start=1):
        mask = spots[box] == index
        if mask.sum() >= LEAST_AREA:
            found.append(_object(values[box], ndimage.binary_fill_holes(mask), box))
    return found


def _object(values: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]) -> Found:
    rows, columns = box
    inside = ndimage.binary_erosion(mask)
    colour = np.median(values[inside if inside.any() else mask], axis=0)
    radius = max(mask.shape) / 2
    whole = min(rows.start, columns.start) > 0 and max(rows.stop, columns.stop) < SIDE
    shape, overlap = max(((name, _overlap(mask, name)) for name in SHAPES), key=lambda pair: pair[1])
    return Found(
        colour=min(COLOURS, key=lambda name: _hue_distance(colour, COLOURS[name])),
        shape=shape if whole and overlap >= LEAST_OVERLAP and radius <= LARGEST_RADIUS else None,
        x=(columns.start + columns.stop) / 2,
        y=(rows.start + rows.stop) / 2,
        radius=radius,
    )


def _overlap(mask: np.ndarray, shape: str) -> float:
    """Intersection over union with the shape drawn as large as the object's longer side."""
    side = max(mask.shape)
    ideal = _drawn(shape, side)
    short = np.zeros((side, side), bool)
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    short[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return (short & ideal).sum() / (short | ideal).sum()


@cache
def _drawn(shape: str, side: int) -> np.ndarray:
    canvas = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(canvas).polygon(outline(shape, (2 * side, 2 * side), 2 * side), fill=255)
    return np.array(canvas.resize((side, side), Image.Resampling.BOX)) > 127


def _hue_distance(one: np.ndarray | tuple[int, ...], two: tuple[int, ...]) -> float:
    """Distance on the colour wheel, in turns."""
    difference = abs(_hue(one) - _hue(two))
    return min(difference, 1 - difference)


def _hue(colour: np.ndarray | tuple[int, ...]) -> float:
    red, green, blue = (float(value) for value in colour)
    return (np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * np.pi)) % 1


def _arrangements(found: list[Found], asked: int) -> list[tuple[Found | None, ...]]:
    """Every way to say which object is which of the things asked for; None: that one is missing."""
    return list(itertools.permutations([*found, *[None] * max(0, asked - len(found))], asked))


def _checks(prompt: Prompt, arrangement: tuple[Found | None, ...]) -> list[bool]:
    checks: list[bool] = []
    for thing, shown in zip(prompt.things, arrangement, strict=True):
        checks += _thing_checks(thing, shown)
    if prompt.place is not None:
        (shown,) = arrangement
        checks.append(shown is not None and _is_at(prompt.place, shown))
    if prompt.relation is not None:
        one, two = arrangement
        checks.append(one is not None and two is not None and _is_so(prompt.relation, one, two))
    return checks


def _thing_checks(thing: Thing, shown: Found | None) -> list[bool]:
    if shown is None:
        return [False] * (2 + (thing.size is not None))
    checks = [shown.colour == thing.colour, shown.shape == thing.shape]
    if thing.size is not None:
        checks.append(shown.radius <= SMALL if thing.size == "small" else shown.radius >= LARGE)
    return checks


def _is_at(place: str, shown: Found) -> bool:
    across, down = shown.x / SIDE - 0.5, shown.y / SIDE - 0.5
    if place == "middle":
        return max(abs(across), abs(down)) < 0.15
    side = {"left": -across, "right": across, "top": -down, "bottom": down}[place]
    return side > 0.08


def _is_so(relation: str, one: Found, two: Found) -> bool:
    across, down = two.x - one.x, two.y - one.y
    distance = {"left of": across, "right of": -across, "above": down, "below": -down}[relation]
    aside = abs(down) if relation in ("left of", "right of") else abs(across)
    return distance > max(8.0, aside)
