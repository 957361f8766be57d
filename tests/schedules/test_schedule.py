"""Schedules as values: what they say at each step, when they are equal, what they refuse. No model, no host."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from without_host import schedule as s

scales = st.floats(-10, 10).map(lambda x: round(x, 3))
positions = st.floats(0, 1).map(lambda x: round(x, 3))
step_counts = st.integers(1, 60)


@st.composite
def keyframe_points(draw: st.DrawFn) -> list[tuple[float, float]]:
    at = sorted(draw(st.sets(positions, min_size=1, max_size=6)))
    return [(p, draw(scales)) for p in at]


def written(points: list[tuple[float, float]]) -> str:
    return ", ".join(f"{p}:{scale}" for p, scale in points)


@given(scale=scales, outside=scales, range_=st.tuples(positions, positions).map(sorted), steps=step_counts)
def test_range_holds_from_start_up_to_end(scale, outside, range_, steps) -> None:
    """start ≤ p < end, and end = 1 includes everything to the end."""
    start, end = range_
    found = s.in_range(scale, start, end, outside).per_step(steps)
    # In whole thousandths: i/n ≥ k/1000 without rounding.
    first, last = round(start * 1000), round(end * 1000)
    assert found == tuple(scale if first * steps <= 1000 * i < last * steps else outside for i in range(steps))


@given(switch=positions, scale=scales, steps=step_counts)
def test_combined_generation_is_base_first(switch, scale, steps) -> None:
    found = s.combined_generation(switch, scale).per_step(steps)
    assert found == tuple(scale if 1000 * i >= round(switch * 1000) * steps else 0.0 for i in range(steps))


def test_combined_generation_of_the_paper() -> None:
    """ImageReFL's setting: 32 of 40 steps with the base model."""
    assert s.combined_generation(0.8).per_step(40) == (0.0,) * 32 + (1.0,) * 8


@given(power=st.floats(0.1, 8), steps=step_counts)
def test_annealed_guidance_is_a_power_of_progress(power, steps) -> None:
    """s_i = (i/T)^p (arXiv 2505.22569)."""
    expected = [(i / steps) ** power for i in range(steps)]
    assert s.ramp(0, 1, "power", power).per_step(steps) == pytest.approx(expected, abs=1e-12)


@given(start=scales, end=scales, steps=step_counts)
def test_ramps(start, end, steps) -> None:
    progress = [i / steps for i in range(steps)]
    linear = s.ramp(start, end, "linear").per_step(steps)
    cosine = s.ramp(start, end, "cosine").per_step(steps)
    assert linear == pytest.approx([start + (end - start) * p for p in progress], abs=1e-9)
    assert cosine == pytest.approx(
        [start + (end - start) * (1 - math.cos(math.pi * p)) / 2 for p in progress], abs=1e-9
    )


@given(points=keyframe_points(), steps=step_counts)
def test_step_keyframes_hold_at_and_after_their_position(points, steps) -> None:
    found = s.keyframes(written(points)).per_step(steps)
    for i, scale in enumerate(found):
        reached = [value for p, value in points if round(p * 1000) * steps <= 1000 * i]
        assert scale == (reached[-1] if reached else points[0][1])


@given(points=keyframe_points(), steps=step_counts)
def test_linear_keyframes_are_straight_lines_between_positions(points, steps) -> None:
    found = s.keyframes(written(points), "linear").per_step(steps)
    at, values = zip(*points, strict=True)
    for i, scale in enumerate(found):
        p = i / steps
        after = next((k for k in range(len(at)) if at[k] > p), len(at))
        if after in (0, len(at)):
            expected = values[0] if after == 0 else values[-1]
        else:
            part = (p - at[after - 1]) / (at[after] - at[after - 1])
            expected = values[after - 1] + part * (values[after] - values[after - 1])
        assert scale == pytest.approx(expected, abs=1e-4)  # a position may be met within the tolerance


@given(points=keyframe_points())
def test_text_of_a_schedule_is_the_schedule(points) -> None:
    """What a log or a label says can be typed back in."""
    by_step, linear = s.keyframes(written(points)), s.keyframes(written(points), "linear")
    assert s.keyframes(str(by_step) if ":" in str(by_step) else f"0:{by_step}") == by_step
    if linear.curve == "linear":
        assert s.keyframes(str(linear).removesuffix(" (linear)"), "linear") == linear


@given(points=keyframe_points(), other=keyframe_points())
def test_equal_schedules_are_those_with_equal_scales(points, other) -> None:
    """Positions have three digits here, so 1000 steps tell any two apart."""
    a, b = s.keyframes(written(points)), s.keyframes(written(other))
    assert (a == b) == (a.per_step(1000) == b.per_step(1000))
    assert a != b or hash(a) == hash(b)


@pytest.mark.parametrize(
    "same",
    [
        [s.constant(1), s.in_range(1, 0.2, 0.8, 1), s.keyframes("0:1"), s.ramp(1, 1, "cosine"), s.keyframes("0.3:1")],
        [s.constant(0), s.combined_generation(1.0), s.in_range(2, 0.5, 0.5, 0), s.constant(-0.0)],
        [s.combined_generation(0.8), s.in_range(1, 0.8, 1, 0), s.keyframes("0:0, 0.8:1"), s.keyframes("0:0\n0.8:1,")],
        [s.ramp(0, 1, "linear"), s.ramp(0, 1, "power", 1), s.keyframes("0:0, 0.3:0.3, 1:1", "linear")],
        [s.constant(2), s.combined_generation(0.0, 2), s.keyframes("0:2, 0.4:2, 1:7")],
    ],
)
def test_schedules_that_mean_the_same_are_equal(same) -> None:
    assert len(set(same)) == 1 and len({str(schedule) for schedule in same}) == 1


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (s.constant(1.6), "1.6"),
        (s.combined_generation(0.8, 2), "0:0, 0.8:2"),
        (s.in_range(3, 0.2, 0.6, 1), "0:1, 0.2:3, 0.6:1"),
        (s.ramp(0, 1, "power", 3), "0:0, 1:1 (power 3)"),
        (s.ramp(2, -1, "cosine"), "0:2, 1:-1 (cosine)"),
    ],
)
def test_text_is_short(schedule, text) -> None:
    assert str(schedule) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s.keyframes(""), "keyframes: there are none"),
        (lambda: s.keyframes(" , \n"), "keyframes: there are none"),
        (lambda: s.keyframes("0:0, abc"), "keyframes: 'abc' is not position:scale"),
        (lambda: s.keyframes("0:0:1"), "keyframes: '0:0:1' is not position:scale"),
        (lambda: s.keyframes("0,5:1"), "keyframes: '0' is not position:scale"),
        (lambda: s.keyframes("0:inf"), "keyframes: inf cannot be used"),
        (lambda: s.keyframes("0:nan"), "keyframes: nan cannot be used"),
        (lambda: s.keyframes("0:11"), "keyframes: 11.0 cannot be used"),
        (lambda: s.keyframes("0:1, 1.5:2"), "keyframes: position 1.5 is no part of the run"),
        (lambda: s.keyframes("nan:1"), "keyframes: position nan is no part of the run"),
        (lambda: s.keyframes("-0.1:1"), "keyframes: position -0.1 is no part of the run"),
        (lambda: s.keyframes("0.5:1, 0.2:2"), "keyframes: 0.2 comes after 0.5"),
        (lambda: s.keyframes("0.5:1, 0.5:2"), "keyframes: 0.5 comes after 0.5"),
        (lambda: s.in_range(1, 0.8, 0.2, 0), "start_percent: 0.8 lies after end_percent 0.2"),
        (lambda: s.in_range(1, 0.2, 0.8, math.inf), "outside: inf cannot be used"),
        (lambda: s.in_range(11, 0.2, 0.8, 1), "scale: 11 cannot be used"),
        (lambda: s.combined_generation(math.nan), "switch_percent: position nan is no part of the run"),
        (lambda: s.ramp(0, 1, "power", 0), "power: 0 cannot be used"),
        (lambda: s.ramp(math.inf, 1, "linear"), "start_scale: inf cannot be used"),
        (lambda: s.ramp(0, 12, "linear"), "end_scale: 12 cannot be used"),
    ],
)
def test_what_is_no_schedule_is_one_sentence_that_begins_with_the_input(make: Callable, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    sentence = str(caught.value)
    assert sentence.startswith(message) and sentence.endswith(".") and "\n" not in sentence and ";" in sentence


@given(st.text(max_size=20))
def test_any_text_parses_or_is_refused_by_name(text: str) -> None:
    try:
        assert all(-10 <= scale <= 10 for scale in s.keyframes(text, "linear").per_step(7))
    except ValueError as error:
        assert str(error).startswith("keyframes: ")


@given(range_=st.tuples(positions, positions).map(sorted), steps=step_counts)
def test_scales_that_no_step_takes_are_known(range_, steps) -> None:
    schedule = s.in_range(3, *range_, 1)
    meant = {scale for _, scale in schedule.points}
    assert set(schedule.unreached(steps)) - set(schedule.per_step(steps)) == meant - set(schedule.per_step(steps))


@given(
    sigmas=st.lists(st.floats(0.002, 20), min_size=1, max_size=40, unique=True),
    part=st.floats(0, 0.9),
    data=st.data(),
)
def test_an_evaluation_belongs_to_the_last_sigma_it_has_not_passed(sigmas, part, data) -> None:
    """Also at sigmas between two listed ones, where samplers evaluate more than once a step."""
    listed = torch.tensor(sorted(sigmas, reverse=True) + [0.0])
    if (listed[1:-1] / listed[:-2] > 1 - 1e-4).any():
        return  # closer than float32 samplers resolve
    i = data.draw(st.integers(0, len(sigmas) - 1))
    between = (listed[i] * (1 - part) + listed[i + 1] * part).item()
    if i + 1 < len(sigmas) and between < listed[i + 1] * (1 + 1e-4):
        return
    assert s.step_index(between, listed.tolist()) == i
    assert s.step_index(float(listed[i].log().exp()), listed.tolist()) == i  # rounding of a sampler in log-space


def test_an_evaluation_above_the_first_sigma_is_the_first_step() -> None:
    """Samplers with churn add noise before the first step."""
    assert s.step_index(14.7, [14.6, 3.0, 0.0]) == 0


def test_sigmas_of_half_a_run_have_their_own_progress() -> None:
    """denoise below 1: the steps that run count."""
    whole = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert [s.step_index(sigma, whole[3:]) for sigma in (0.4, 0.2)] == [0, 1]
