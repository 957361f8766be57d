"""Axes of a sweep besides scale and switch point: what else changes from cell to cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..schedules.schedule import exact
from .number_list import number_list

SEED, POWER, LORA = "seed", "power", "lora"
RANGES = {SEED: (0, 2**53), "cfg": (0.0, 100.0), "tuned_cfg": (0.0, 100.0), POWER: (0.05, 20.0)}
"""Axes of numbers. Seeds up to where a float, and so the page, is still exact."""
_EXAMPLES = {SEED: "42, 43, 44"}


@dataclass(frozen=True)
class Axis:
    """One setting of a sweep in several values.

    Attributes:
        name: of the setting; in labels as well.
        values: numbers, or MODELs.
        texts: what labels say of each value, without the name.
    """

    name: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One value of each axis.

    Attributes:
        values: name of an axis → its value.
        said: the parts of labels that say it, before the scale. The seed has its own place in them.
    """

    values: Mapping[str, Any]
    said: tuple[str, ...]


def number_axis(name: str, text: str) -> Axis:
    """Numbers for one of `RANGES`.

    Args:
        text: as `number_list` reads it.

    Raises:
        ValueError: the text does not say that, or a number cannot be used.
    """
    numbers = number_list(text, "values", _EXAMPLES.get(name, "1, 2, 4.5"))
    if not numbers:
        raise ValueError(
            f"values: there are none; write one or more for {name}, such as {_EXAMPLES.get(name, '1, 2')}."
        )
    low, high = RANGES[name]
    for number in numbers:
        if not low <= number <= high or (name == SEED and not number.is_integer()):
            kind = "whole number" if name == SEED else "number"
            raise ValueError(
                f"values: {exact(number)} cannot be used for {name}; give a {kind} from {exact(low)} to {exact(high)}."
            )
    values = tuple(int(number) if name == SEED else number for number in numbers)
    return Axis(name, values, tuple(map(exact, values)))


def within(axes: Sequence[Axis], axis: Axis) -> tuple[Axis, ...]:
    """Axes with one more, innermost.

    Raises:
        ValueError: there is one of that name.
    """
    if any(other.name == axis.name for other in axes):
        raise ValueError(f"axis: {axis.name} is compared twice; write all its values into one axis node.")
    return *axes, axis


def settings(axes: Sequence[Axis]) -> Iterator[Setting]:
    """Every combination of the axes' values, the last changing fastest; one of nothing where there are no axes."""
    names = [axis.name for axis in axes]
    for picks in itertools.product(*(zip(axis.values, axis.texts, strict=True) for axis in axes)):
        said = tuple(f"{name} {text}" for name, (_, text) in zip(names, picks, strict=True) if name != SEED)
        yield Setting({name: value for name, (value, _) in zip(names, picks, strict=True)}, said)
