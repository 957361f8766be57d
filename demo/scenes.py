"""Drawn scenes with captions: what the demo's models are trained on, and what their pictures are asked to show.

A scene is one or two coloured shapes on a pale or dark, possibly patterned background, 128 × 128 pixels. A prompt says
some of it (colours and shapes always, sizes, places and the background sometimes), in varied wording; what it does not
say is drawn at random. Objects are saturated and backgrounds are not, so a picture can be read back from its pixels
(`demo.rewards`).

Objects stand in one of five places, in few sizes, and patterns repeat with the model's tokens of 16 pixels: a small
model learns clear shapes from that in minutes, where free positions would take it hours.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from demo.held_out import different, of_part

SIDE = 128
"""Width and height of a scene in pixels."""

COLOURS = {
    "red": (215, 45, 45),
    "yellow": (235, 205, 40),
    "green": (45, 165, 65),
    "cyan": (45, 185, 205),
    "blue": (50, 85, 215),
    "purple": (150, 60, 195),
}
SHAPES = ("circle", "square", "triangle", "star")
BACKGROUNDS = ("plain", "shaded", "striped", "dotted", "checkered")
RELATIONS = ("left of", "right of", "above", "below")
CENTRES = {"left": (32, 64), "right": (96, 64), "top": (64, 32), "bottom": (64, 96), "middle": (64, 64)}
"""Where objects stand, in pixels."""
PLACES = tuple(CENTRES)
RADII = {"small": 12, "large": 28, None: 20}
"""Half the width of a lone object in pixels, by the size the prompt asks for."""
RADIUS_OF_TWO = 16
TOKEN = 16
"""Pixels; patterns repeat with it."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """An object as a prompt describes it."""

    colour: str
    shape: str
    size: str | None = None
    """"small", "large", or None where the prompt leaves it open."""


@dataclass(frozen=True)
class Prompt:
    """What a scene has to show, and how that is said."""

    things: tuple[Thing, ...]
    text: str
    place: str | None = None
    """Where a lone thing is: one of PLACES."""
    relation: str | None = None
    """How the first of two things lies to the second: one of RELATIONS."""
    background: str | None = None

    @property
    def held_out(self) -> bool:
        """True for one in eight combinations of things, place and relation, which training never sees."""
        content = f"{self.things}{self.place}{self.relation}"
        return zlib.crc32(content.encode()) % 8 == 0


def random_prompt(rng: np.random.Generator, *, held_out: bool) -> Prompt:
    """A prompt of the part kept for evaluation (`held_out`), or of the part for training."""
    return of_part(_any_prompt, rng, held_out)


def prompts(seed: int, count: int, *, held_out: bool) -> list[Prompt]:
    """`count` different prompts."""
    return different(_any_prompt, seed, count, held_out)


def _any_prompt(rng: np.random.Generator) -> Prompt:
    background = _choice(rng, BACKGROUNDS) if rng.random() < 0.3 else None
    kind = rng.random()
    if kind < 0.4:
        size = _choice(rng, ("small", "large")) if rng.random() < 0.5 else None
        thing = _thing(rng, size)
        place = _choice(rng, PLACES) if rng.random() < 0.6 else None
        return Prompt((thing,), _say(rng, _one(thing, place), background), place=place, background=background)
    if kind < 0.5:
        thing = _thing(rng)
        return Prompt((thing, thing), _say(rng, [f"two {_name(thing)}s"], background), background=background)
    first, second = _thing(rng), _thing(rng)
    while second == first:
        second = _thing(rng)
    relation = _choice(rng, RELATIONS) if rng.random() < 0.75 else None
    text = _say(rng, _two(first, second, relation), background)
    return Prompt((first, second), text, relation=relation, background=background)


def _thing(rng: np.random.Generator, size: str | None = None) -> Thing:
    return Thing(_choice(rng, tuple(COLOURS)), _choice(rng, SHAPES), size)


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _name(thing: Thing) -> str:
    return " ".join(filter(None, (thing.size, thing.colour, thing.shape)))


def _one(thing: Thing, place: str | None) -> list[str]:
    name = _name(thing)
    if place is None:
        return [f"a {name}", f"one {name}"]
    where = "in the middle" if place == "middle" else f"{'at' if place in ('top', 'bottom') else 'on'} the {place}"
    return [f"a {name} {where}", f"{where} a {name}"]


def _two(first: Thing, second: Thing, relation: str | None) -> list[str]:
    a, b = _name(first), _name(second)
    if relation is None:
        return [f"a {a} and a {b}", f"a {a} with a {b}"]
    opposite = RELATIONS[RELATIONS.index(relation) ^ 1]
    said = {"left of": "to the left of", "right of": "to the right of"}
    return [
        f"a {a} {relation} a {b}",
        f"a {a} {said.get(relation, relation)} a {b}",
        f"a {a} and, {said.get(opposite, opposite)} it, a {b}",
    ]


def _say(rng: np.random.Generator, wordings: list[str], background: str | None) -> str:
    text = wordings[rng.integers(len(wordings))]
    if background is not None:
        text += f" on a {background} background" if rng.random() < 0.5 else f", {background} background"
    lead = rng.random()
    return f"a picture of {text}" if lead < 0.2 else f"{text}." if lead < 0.4 else text


def draw(prompt: Prompt, rng: np.random.Generator) -> Image.Image:
    """A random RGB picture, SIDE × SIDE, of which `prompt` is true."""
    scale = 2  # drawn larger, for smooth edges
    picture, _ = background(prompt.background or _choice(rng, BACKGROUNDS), rng, scale)
    pen = ImageDraw.Draw(picture)
    for thing, centre, radius in _arranged(prompt, rng):
        colour = tuple(int(np.clip(value + rng.integers(-8, 9), 0, 255)) for value in COLOURS[thing.colour])
        pen.polygon([(scale * x, scale * y) for x, y in outline(thing.shape, centre, radius)], fill=colour)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def outline(shape: str, centre: Point, radius: float) -> list[Point]:
    """Corners in pixels of a shape whose bounding box is 2 · radius wide and high."""
    unit = _UNIT_OUTLINES[shape]
    return [(centre[0] + radius * x, centre[1] + radius * y) for x, y in unit]


def _star() -> list[Point]:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    length = np.where(np.arange(10) % 2, 0.45, 1.0)
    x, y = length * np.cos(angle), length * np.sin(angle)
    return [tuple(point) for point in np.stack([_fitted(x), _fitted(y)], axis=1)]


def _fitted(values: np.ndarray) -> np.ndarray:
    """Stretched to −1…1."""
    return 2 * (values - values.min()) / np.ptp(values) - 1


_TURN = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_UNIT_OUTLINES: dict[str, list[Point]] = {
    "circle": list(zip(np.cos(_TURN), np.sin(_TURN), strict=True)),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "star": _star(),
}


def _arranged(prompt: Prompt, rng: np.random.Generator) -> list[tuple[Thing, Point, float]]:
    """Things with centre and radius in pixels. Two stand on opposite sides."""
    if len(prompt.things) == 1:
        (thing,) = prompt.things
        return [(thing, CENTRES[prompt.place or _choice(rng, PLACES)], RADII[thing.size])]
    sides = _SIDES[prompt.relation or _choice(rng, RELATIONS)]
    return [(thing, CENTRES[side], RADIUS_OF_TWO) for thing, side in zip(prompt.things, sides, strict=True)]


_SIDES = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def background(kind: str, rng: np.random.Generator, scale: int) -> tuple[Image.Image, bool]:
    """One of BACKGROUNDS in two tones of a weak tint, `scale` times SIDE wide, and whether they are dark."""
    one, two = _tones(rng)
    side, dark = SIDE * scale, max(one) < 128
    if kind == "plain":
        return Image.new("RGB", (side, side), one), dark
    y, x = np.mgrid[:side, :side] / scale
    along = (x, y, x + y, x - y)[rng.integers(4)]
    pattern: Callable[[], np.ndarray] = {
        "shaded": lambda: (along - along.min()) / np.ptp(along),
        "striped": lambda: along % TOKEN < TOKEN / 2,
        "checkered": lambda: (x % TOKEN < TOKEN / 2) ^ (y % TOKEN < TOKEN / 2),
        "dotted": lambda: np.hypot(x % TOKEN - TOKEN / 2, y % TOKEN - TOKEN / 2) < TOKEN / 4,
    }[kind]
    share = pattern()[..., None].astype(float)
    return Image.fromarray((share * two + (1 - share) * np.array(one)).round().astype(np.uint8)), dark


def _tones(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two tones of one weak tint, both pale or both dark."""
    hue, pale = rng.random(), rng.random() < 0.6
    one = rng.uniform(0.72, 0.98) if pale else rng.uniform(0.12, 0.38)
    two = np.clip(one + rng.choice((-1, 1)) * rng.uniform(0.1, 0.2), 0.08, 1.0)
    saturation = rng.uniform(0, 0.14)
    return tuple(
        tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, saturation, brightness))
        for brightness in (one, two)
    )
