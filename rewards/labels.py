"""What the labels of pictures say: how each was made, and at which scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TELLS_APART = re.compile(r"^(picture|seed|branch|image) \S+$")
"""Parts that differ between pictures of one setting."""
_NUMBER = re.compile(r"^(?P<name>scale|switch) (?P<value>\S+)$")


@dataclass(frozen=True)
class Place:
    """Where a picture belongs in a plot.

    Attributes:
        series: what its label says besides, such as "switch 0.5"; may be empty.
        x: its place along the axis.
    """

    series: str
    x: float


def settings(labels: Sequence[str]) -> list[str]:
    """Of each label what it shares with the other pictures of its setting; may be empty.

    Args:
        labels: parts separated by ", ", as RLG Sweep and RLG Branch write them.
    """
    return [", ".join(part for part in _parts(label) if not _TELLS_APART.match(part)) for label in labels]


def places(labels: Sequence[str]) -> tuple[str, list[Place]]:
    """The name of the axis, and where each picture lies on it.

    The axis is the scale. Where all scales are equal and switch points are not, it is the switch point.

    Raises:
        ValueError: a label says no scale, or none that is a number.
    """
    numbers = [_numbers(label) for label in labels]
    for label, found in zip(labels, numbers, strict=True):
        if "scale" not in found:
            raise ValueError(f"labels: '{label}' says no scale; connect the labels of RLG Sweep.")
    axis = "scale"
    if len({found["scale"] for found in numbers}) == 1 and len({found.get("switch") for found in numbers}) > 1:
        axis = "switch"
    for label, found in zip(labels, numbers, strict=True):
        if axis not in found:
            raise ValueError(f"labels: '{label}' says no {axis}, which others do; connect the labels of one RLG Sweep.")
    series = [", ".join(part for part in _parts(s) if not part.startswith(f"{axis} ")) for s in settings(labels)]
    return axis, [Place(s, found[axis]) for s, found in zip(series, numbers, strict=True)]


def _parts(label: str) -> list[str]:
    return [part for part in label.split(", ") if part]


def _numbers(label: str) -> dict[str, float]:
    found = {}
    for match in filter(None, map(_NUMBER.match, _parts(label))):
        try:
            found[match["name"]] = float(match["value"])
        except ValueError:
            raise ValueError(f"labels: '{match['value']}' in '{label}' is not a number.") from None
    return found
