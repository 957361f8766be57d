"""How the scale depends on the progress of a sampling run.

A run takes steps i = 0 … n-1; step i has the progress p = i/n. Combined generation (arXiv 2505.22569), interval
guidance and annealed guidance are all functions of p. A `Schedule` is such a function as a value: two that mean the
same are equal, whichever way they were made, and its text says what it does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..messages import shown

# Positions come as decimals (0.333) and progress as a quotient (1/3): equal ones must meet.
_TOLERANCE = 1e-6
# Samplers that compute in log-space reach a listed sigma up to float32 rounding.
_SIGMA_TOLERANCE = 1e-5

Point = tuple[float, float]

MIN_SCALE, MAX_SCALE = -10.0, 10.0


@dataclass(frozen=True)
class Schedule:
    """Progress → scale. Make one with the functions below: they bring it into the form in which equal ones are equal.

    Attributes:
        curve: how the scale gets from one point to the next: "step" (it holds), "linear", "cosine" or "power".
        points: (progress, scale), rising in progress, the first at 0.
        power: exponent of "power"; 1 for the others.
    """

    curve: str
    points: tuple[Point, ...]
    power: float = 1.0

    def at(self, progress: float) -> float:
        """The scale at a progress from 0 to 1."""
        index = bisect_right([position for position, _ in self.points], progress + _TOLERANCE) - 1
        start, scale = self.points[index]
        if self.curve == "step" or index + 1 == len(self.points):
            return scale
        end, next_scale = self.points[index + 1]
        fraction = min(max((progress - start) / (end - start), 0.0), 1.0)
        if self.curve == "cosine":
            fraction = (1.0 - math.cos(math.pi * fraction)) / 2.0
        elif self.curve == "power":
            fraction = fraction**self.power
        return scale + (next_scale - scale) * fraction

    @property
    def constant_scale(self) -> float | None:
        """The scale where it never changes, else None."""
        return self.points[0][1] if len(self.points) == 1 else None

    def per_step(self, steps: int) -> tuple[float, ...]:
        """The scale at each of `steps` steps."""
        return tuple(self.at(i / steps) for i in range(steps))

    def unreached(self, steps: int) -> list[float]:
        """Scales of "step" that none of `steps` steps takes, because no step falls into their range."""
        if self.curve != "step":
            return []
        starts = [first_step(position, steps) for position, _ in self.points] + [steps]
        return [scale for (_, scale), a, b in zip(self.points, starts, starts[1:], strict=False) if a >= b]

    def __str__(self) -> str:
        if self.constant_scale is not None:
            return exact(self.constant_scale)
        pairs = ", ".join(f"{exact(p)}:{exact(s)}" for p, s in self.points)
        if self.curve == "step":
            return pairs
        return f"{pairs} ({self.curve}{f' {exact(self.power)}' if self.curve == 'power' else ''})"


def check_scale(scale: float, name: str = "scale") -> float:
    """Return `scale` if it can be used; `name` is the input it came from.

    Raises:
        ValueError: it is not a finite number from -10 to 10.
    """
    if not (math.isfinite(scale) and MIN_SCALE <= scale <= MAX_SCALE):
        raise ValueError(
            f"{name}: {scale} cannot be used; give a number from {MIN_SCALE:g} to {MAX_SCALE:g} "
            "(0 = base model, 1 = tuned model, above 1 = beyond it)."
        )
    return scale


def constant(scale: float) -> Schedule:
    """`scale` at every step.

    Raises:
        ValueError: it is not a finite number from -10 to 10.
    """
    return _steps([(0.0, check_scale(scale))])


def in_range(scale: float, start_percent: float, end_percent: float, outside: float) -> Schedule:
    """`scale` where start ≤ p < end (an end of 1 includes the last step), `outside` elsewhere: interval guidance.

    Raises:
        ValueError: a scale cannot be used, or the range is none.
    """
    check_scale(scale), check_scale(outside, "outside")
    start, end = check_position(start_percent, "start_percent"), check_position(end_percent, "end_percent")
    if start > end:
        raise ValueError(
            f"start_percent: {exact(start)} lies after end_percent {exact(end)}; swap the two, or lower start_percent."
        )
    return _steps([(0.0, outside), (start, scale), (end, outside)])


def combined_generation(switch_percent: float, scale: float = 1.0) -> Schedule:
    """The base model before the progress `switch_percent`, `scale` from it on (arXiv 2505.22569, section 4).

    Raises:
        ValueError: the scale cannot be used, or `switch_percent` is not from 0 to 1.
    """
    check_scale(scale)
    check_position(switch_percent, "switch_percent")
    return _steps([(0.0, 0.0), (switch_percent, scale)])


def ramp(start_scale: float, end_scale: float, curve: str, power: float = 2.0) -> Schedule:
    """start + (end − start)·f(p), f = p, (1 − cos πp)/2 or p^power for "linear", "cosine", "power".

    ImageReFL's annealed guidance is 0, 1, "power" with a power from 1 to 5 (arXiv 2505.22569).

    Raises:
        ValueError: a scale cannot be used, or the power is not above 0.
    """
    check_scale(start_scale, "start_scale"), check_scale(end_scale, "end_scale")
    if curve == "power" and not (math.isfinite(power) and power > 0.0):
        raise ValueError(f"power: {power} cannot be used; give a number above 0 (1 is linear, 2 starts slowly).")
    ends = [(0.0, start_scale), (1.0, end_scale)]
    if curve == "linear" or start_scale == end_scale or (curve == "power" and power == 1.0):
        return _linear(ends)
    return Schedule(curve, tuple(ends), power if curve == "power" else 1.0)


def keyframes(keyframes: str, interpolation: str = "step") -> Schedule:
    """A schedule from pairs such as "0:0, 0.5:1, 0.8:2": progress and the scale from there on.

    Before the first position its scale holds too.

    Args:
        keyframes: pairs separated by commas or line ends, positions rising from 0 to 1.
        interpolation: "step" holds each scale until the next position, "linear" goes straight to it.

    Raises:
        ValueError: the text does not say that; the message shows the part it is about.
    """
    points: list[Point] = []
    for pair in (part.strip() for part in keyframes.replace("\n", ",").split(",")):
        if not pair:
            continue
        point = _parse_pair(pair)
        if points and point[0] <= points[-1][0]:
            raise ValueError(
                f"keyframes: {exact(point[0])} comes after {exact(points[-1][0])}; give each position once, in rising "
                "order."
            )
        points.append(point)
    if not points:
        raise ValueError("keyframes: there are none; write position:scale pairs, such as 0:0, 0.5:1.")
    points.insert(0, (0.0, points[0][1]))
    return _linear(points) if interpolation == "linear" else _steps(points)


def first_step(position: float, steps: int) -> int:
    """The first of `steps` steps that has come to a position; `steps` where none has."""
    return max(math.ceil((position - _TOLERANCE) * steps), 0)


def step_index(sigma: float, sigmas: Sequence[float]) -> int:
    """The step that an evaluation at `sigma` belongs to: the largest i < n with σ_i ≥ sigma, 0 where there is none.

    A sampler's second evaluation within a step, at a lower sigma, thus belongs to the same step until it reaches the
    next σ_i.

    Args:
        sigma: noise level of the evaluation.
        sigmas: σ_0 … σ_n of the steps that run.
    """
    lowest = sigma * (1.0 - _SIGMA_TOLERANCE)
    return next((i for i in range(len(sigmas) - 2, -1, -1) if sigmas[i] >= lowest), 0)


def check_position(position: float, name: str) -> float:
    """Return `position` if it is from 0 to 1; `name` is the input it came from.

    Raises:
        ValueError: it is not.
    """
    if not 0.0 <= position <= 1.0:
        raise ValueError(f"{name}: position {position} is no part of the run; give a number from 0 (start) to 1 (end).")
    return position


def _steps(points: Sequence[Point]) -> Schedule:
    """Each scale held until the next position: no position that no step reaches, no change that is none."""
    kept: dict[float, float] = {}
    for position, scale in points:
        if position < 1.0:
            kept[position] = scale + 0.0  # no negative zero
    changes: list[Point] = []
    for position, scale in kept.items():
        if not changes or changes[-1][1] != scale:
            changes.append((position, scale))
    return Schedule("step", tuple(changes))


def _linear(points: Sequence[Point]) -> Schedule:
    """Straight lines from 0 to 1, with no point in the middle of one."""
    whole = dict([*points, (1.0, points[-1][1])] if points[-1][0] < 1.0 else points)
    kept: list[Point] = []
    for position, scale in whole.items():
        point = (position, scale + 0.0)
        while len(kept) > 1 and _on_a_line(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    if all(scale == kept[0][1] for _, scale in kept):
        return _steps(kept[:1])
    return Schedule("linear", tuple(kept))


def _on_a_line(a: Point, b: Point, c: Point) -> bool:
    (ap, av), (bp, bv), (cp, cv) = (tuple(Fraction(repr(float(x))) for x in point) for point in (a, b, c))
    return (bv - av) * (cp - ap) == (cv - av) * (bp - ap)


def _parse_pair(pair: str) -> Point:
    try:
        position, scale = (float(number) for number in pair.split(":"))
    except ValueError:
        raise ValueError(
            f"keyframes: '{shown(pair)}' is not position:scale; write pairs of numbers, such as 0:0, 0.5:1."
        ) from None
    return check_position(position, "keyframes"), check_scale(scale, "keyframes")


def exact(number: float) -> str:
    """The shortest text that says exactly this number, without a decimal point where it is whole."""
    return repr(float(number)).removesuffix(".0")
