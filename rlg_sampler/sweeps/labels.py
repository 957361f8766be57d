"""Labels of pictures: what RLG Sweep and RLG Branch write is read here by all that group, plot or save pictures.

A label has parts of a name and a value, separated by ", ": "switch 0.5, scale 1.6, picture 2, seed 7".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..messages import shown
from ..schedules.schedule import Schedule, combined_generation, constant, exact, ramp

_SEPARATOR = ", "
_TELLS_APART = re.compile(r"(picture|seed|branch|image) \S+")
"""Parts that differ between pictures of one setting."""
_NUMBER = re.compile(r"(?P<name>scale|switch|power|tuned_cfg|cfg) (?P<value>\S+)")
_OF_SWEEP = re.compile(r"(?:(?:switch|power) \S+, )?scale \S+,(?: picture \d+,)? seed (?P<seed>\d+)")
_OTHER_AXES = "switch", "power", "cfg", "tuned_cfg"
"""What pictures of one scale may lie along."""


class Place(NamedTuple):
    """Where a picture belongs in a plot.

    Attributes:
        series: what its label says besides, such as "switch 0.5"; may be empty.
        x: its place along the axis.
        noise: what of its label tells it apart from others there, such as "picture 2, seed 7"; may be empty.
    """

    series: str
    x: float
    noise: str


def labels(runs: Sequence[str], pictures: int, seed: int) -> list[str]:
    """One label for each picture of several runs, a run's pictures next to each other.

    Args:
        runs: what a label says of each run.
        pictures: how many each run has.
        seed: of the first noise.
    """
    numbers = [[f"picture {n + 1}"] for n in range(pictures)] if pictures > 1 else [[]]
    return [join([run, *number, f"seed {seed}"]) for run in runs for number in numbers]


def of_cell(scale: float, switch: float | None = None, power: float | None = None) -> str:
    """What labels say of a run: one scale, that from the switch point on, or a ramp to it; to the last digit."""
    others = {"switch": switch, "power": power}
    return join(
        [*(f"{name} {exact(value)}" for name, value in others.items() if value is not None), f"scale {exact(scale)}"]
    )


def split(label: str) -> list[str]:
    return label.split(_SEPARATOR)


def join(parts: Iterable[str]) -> str:
    return _SEPARATOR.join(parts)


def settings(labels: Sequence[str]) -> list[str]:
    """Of each label what it shares with the other pictures of its setting; may be empty."""
    return [join(part for part in split(label) if not _TELLS_APART.fullmatch(part)) for label in labels]


def saying(labels: Sequence[str], wanted: str) -> list[int]:
    """Indices of the labels that have all parts of `wanted`, such as "cfg 3, scale 2"; of all where it is empty.

    Raises:
        ValueError: no label has them.
    """
    parts = {part.strip() for part in wanted.split(",") if part.strip()}
    found = [index for index, label in enumerate(labels) if parts <= set(split(label))]
    if parts and not found:
        raise ValueError(f"among: no picture's label says '{shown(wanted)}'; the first is '{labels[0]}'.")
    return found


def places(labels: Sequence[str]) -> tuple[str, list[Place]]:
    """The name of the axis, and where each picture lies on it.

    The axis is the scale. Where all scales are equal and other numbers are not, it is the first of these.

    Raises:
        ValueError: a label says no scale, or none that is a number.
    """
    numbers = [_numbers(label) for label in labels]
    for label, found in zip(labels, numbers, strict=True):
        if "scale" not in found:
            raise ValueError(f"labels: '{label}' says no scale; connect the labels of RLG Sweep.")
    varying = [name for name in ("scale", *_OTHER_AXES) if len({found.get(name) for found in numbers}) > 1]
    axis = varying[0] if varying else "scale"
    for label, found in zip(labels, numbers, strict=True):
        if axis not in found:
            raise ValueError(f"labels: '{label}' says no {axis}, which others do; connect the labels of one RLG Sweep.")
    result = []
    for label, of_label in zip(labels, numbers, strict=True):
        parts = split(label)
        series = [part for part in parts if not part.startswith(f"{axis} ") and not _TELLS_APART.fullmatch(part)]
        result.append(Place(join(series), of_label[axis], join(filter(_TELLS_APART.fullmatch, parts))))
    return axis, result


def schedule_and_seed(label: str) -> tuple[Schedule, int]:
    """How a picture of RLG Sweep was sampled.

    Raises:
        ValueError: it is no label of RLG Sweep, or says more than schedule and seed.
    """
    other = next((part for part in split(label) if part.split(" ")[0] in ("lora", "cfg", "tuned_cfg")), None)
    if other is not None:
        raise ValueError(
            f"labels: '{other}' has no place in a set; take it out of RLG Sweep's axis, and save a set for each."
        )
    found = _OF_SWEEP.fullmatch(label)
    if found is None:
        raise ValueError(f"labels: '{label}' is no label of RLG Sweep; connect its labels, or seed and scale instead.")
    numbers = _numbers(label)
    return schedule_of(numbers["scale"], numbers.get("switch"), numbers.get("power")), int(found["seed"])


def schedule_of(scale: float, switch: float | None = None, power: float | None = None) -> Schedule:
    """What `of_cell` says."""
    if power is not None:
        return ramp(0.0, scale, "power", power)
    return constant(scale) if switch is None else combined_generation(switch, scale)


def _numbers(label: str) -> dict[str, float]:
    found = {}
    for match in filter(None, map(_NUMBER.fullmatch, split(label))):
        try:
            found[match["name"]] = float(match["value"])
        except ValueError:
            found[match["name"]] = math.nan
        if not math.isfinite(found[match["name"]]):
            raise ValueError(f"labels: '{match['value']}' in '{label}' is not a number; connect labels of RLG Sweep.")
    return found
