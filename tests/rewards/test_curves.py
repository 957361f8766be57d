"""From labels and scores to a curve, and the best of a batch; truth from scipy and from definitions."""

from __future__ import annotations

import csv
import io
import math
import statistics
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pictures import sweep_labels
from without_host import curve as curves
from without_host import intervals, labels, pick, pixels, schedule

VALUES = st.floats(-1e3, 1e3)


def of_labels(texts: list[str], *values: Any, **more: Any) -> curves.Curve:
    return curves.curve(*labels.places(texts), *values, **more)


SCALES = st.floats(-10, 10)


@given(st.lists(SCALES, min_size=1, max_size=3), st.one_of(st.none(), st.floats(0, 1)), st.integers(1, 3))
def test_a_label_says_exactly_how_its_picture_was_sampled(
    scales: list[float], switch: float | None, pictures: int
) -> None:
    """To the last digit: a saved set names its folders by it."""
    schedules = [
        schedule.constant(scale) if switch is None else schedule.combined_generation(switch, scale) for scale in scales
    ]
    written = labels.labels([labels.of_cell(scale, switch) for scale in scales], pictures, 7)
    assert [labels.schedule_and_seed(label) for label in written] == [
        (s, 7) for s in schedules for _ in range(pictures)
    ]


def test_labels_of_a_sweep_say_setting_and_scale() -> None:
    given_labels = ["scale 0, picture 1, seed 7", "scale 0, picture 2, seed 7", "scale 1.6, picture 1, seed 7"]
    assert labels.settings(given_labels) == ["scale 0", "scale 0", "scale 1.6"]
    axis, places = labels.places(given_labels)
    assert axis == "scale"
    assert [(place.series, place.x) for place in places] == [("", 0.0), ("", 0.0), ("", 1.6)]


def test_switch_points_are_series_or_the_axis_where_there_is_one_scale() -> None:
    axis, places = labels.places(sweep_labels(2, 2))
    assert axis == "scale" and {place.series for place in places} == {"switch 0.0", "switch 0.1"}
    axis, places = labels.places(sweep_labels(3, 1))
    assert axis == "switch" and [place.x for place in places] == [0.0, 0.1, 0.2]


def test_branches_of_one_beginning_are_one_setting() -> None:
    assert labels.settings(["branch 1, seed 3", "branch 2, seed 3"]) == ["", ""]
    with pytest.raises(ValueError, match="'branch 1, seed 3' says no scale"):
        labels.places(["branch 1, seed 3"])


@given(st.lists(VALUES, min_size=2, max_size=20))
def test_the_interval_is_students(values: list[float]) -> None:
    found = curves.estimate(values)
    error = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=error or 1e-300)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_the_interval_is_over_prompts_where_there_are_several() -> None:
    """Ten pictures of one prompt say little about others."""
    found = curves.estimate([1.0] * 10 + [3.0] * 10, ["a"] * 10 + ["b"] * 10)
    low, high = scipy.stats.t.interval(0.95, 1, loc=2.0, scale=scipy.stats.sem([1.0, 3.0]))
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, low, high))


def test_one_picture_has_no_interval() -> None:
    assert curves.estimate([2.0]) == intervals.Estimate(2.0, None, None)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_bootstrap_intervals_cover_the_mean_about_as_often_as_they_say(seed: int) -> None:
    """95 % intervals of 60 experiments miss the truth 3 times on average, and 12 times hardly ever."""
    rng = np.random.default_rng(seed)
    values = rng.normal(2.0, 1.0, size=(40, 3, 60)) + rng.normal(0, 1.0, size=(40, 1, 60))
    found = intervals.bootstraps(values.mean(axis=1))
    alone = intervals.bootstrap(values[..., 0])
    assert (alone.mean, alone.low, alone.high) == pytest.approx((found[0].mean, found[0].low, found[0].high))
    assert sum(not e.low <= 2.0 <= e.high for e in found) < 13
    # Prompts, not pictures, are what is independent: the wider of the two possible intervals.
    width = float(np.mean([e.high - e.low for e in found]))
    assert width == pytest.approx(2 * 1.96 * math.sqrt((1 + 1 / 3) / 40), rel=0.1)


def test_a_bootstrap_is_that_of_scipy() -> None:
    """Its percentile bootstrap, with other draws; 4000 of them place an end within hundredths of the width."""
    values = np.random.default_rng(1).gamma(2.0, size=(60, 2))
    for found, column in zip(intervals.bootstraps(values), values.T, strict=True):
        low, high = scipy.stats.bootstrap(
            (column,), np.mean, method="percentile", n_resamples=20_000, rng=2
        ).confidence_interval
        assert found.mean == pytest.approx(column.mean())
        assert found.low == pytest.approx(low, abs=0.05 * (high - low))
        assert found.high == pytest.approx(high, abs=0.05 * (high - low))


def test_one_prompt_has_no_interval() -> None:
    """To draw it again and again says nothing about others, and would look like certainty."""
    assert intervals.bootstrap(np.array([[1.0, 3.0]])) == intervals.Estimate(2.0, None, None)


def test_the_diversity_of_pixels_is_the_mean_distance_to_the_others() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert pixels.pixel_distances(np.stack([black, black, black])).tolist() == [0, 0, 0]
    assert pixels.pixel_distances(np.stack([black, white])) == pytest.approx([1, 1])
    assert pixels.pixel_distances(np.stack([black, white, black])) == pytest.approx([1 / 2, 1, 1 / 2])


@pytest.mark.parametrize(("model", "name"), [(0, "above_base"), (1, "above_tuned")])
@given(pairs=st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12), turned=st.booleans())
def test_what_is_above_a_model_is_students_paired_difference(
    model: int, name: str, pairs: list[tuple[float, float]], turned: bool
) -> None:
    """Of the same noise, in whichever order the pictures come."""
    numbers = range(len(pairs))
    base = [f"scale {model}, picture {n}, seed 7" for n in numbers]
    other = [f"scale 2, picture {n}, seed 7" for n in (reversed(numbers) if turned else numbers)]
    scores = [b for b, _ in pairs] + [t for _, t in (reversed(pairs) if turned else pairs)]
    (at_base, found) = (getattr(point, name) for point in of_labels(base + other, scores).points)
    assert (at_base.mean, at_base.low, at_base.high) == (0, 0, 0)
    differences = [t - b for b, t in pairs]
    error = scipy.stats.sem(differences)
    low, high = scipy.stats.t.interval(0.95, len(pairs) - 1, loc=statistics.fmean(differences), scale=error or 1e-300)
    assert found.mean == pytest.approx(statistics.fmean(differences), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_what_is_above_the_base_is_over_prompts_where_there_are_several() -> None:
    texts = [f"scale {s}, picture {n}, seed 7" for s in (0, 1) for _ in "ab" for n in (1, 2)]
    found = of_labels(texts, [1.0, 2.0, 5.0, 6.0, 2.0, 3.0, 8.0, 9.0], prompts=["a", "a", "b", "b"] * 2).points[1]
    low, high = scipy.stats.t.interval(0.95, 1, loc=2.0, scale=scipy.stats.sem([1.0, 3.0]))
    assert (found.above_base.mean, found.above_base.low, found.above_base.high) == pytest.approx((2.0, low, high))


@pytest.mark.parametrize(
    "texts",
    [
        ["scale 1, seed 1", "scale 2, seed 1"],
        ["scale 0, seed 1", "scale 2, seed 2"],
        ["scale 0, seed 1", "scale 2, seed 1", "scale 2, seed 2"],
        ["scale 0, seed 1", "scale 0, seed 1", "scale 2, seed 1", "scale 2, seed 1"],
        ["switch 0.2, scale 0, seed 1", "switch 0.5, scale 2, seed 1"],
    ],
    ids=["no base", "another noise", "one more noise", "noises that are not told apart", "another series"],
)
def test_nothing_is_above_a_base_of_other_noise(texts: list[str]) -> None:
    assert of_labels(texts, [float(n) for n in range(len(texts))]).points[-1].above_base is None


@pytest.mark.parametrize(
    "labels",
    [
        ["switch 0, scale 2", "switch 1, scale 2"],
        ["switch 0.5, scale 1", "switch 0.5, scale 2", "switch 0.2, scale 1", "switch 0.2, scale 2"],
        ["power 2, scale 1", "power 2, scale 2", "power 3, scale 1", "power 3, scale 2"],
    ],
)
def test_nothing_is_above_the_tuned_model_along_a_schedule(labels: list[str]) -> None:
    """Which ends with a scale: at 1 it is not the tuned model."""
    found = of_labels(labels, [float(number) for number in range(len(labels))])
    assert len(found.points) == len(labels) and not any(point.above_tuned for point in found.points)


def test_diversity_has_an_interval_over_prompts_only() -> None:
    """One prompt's values are distances between the same pictures."""
    texts, values = ["scale 1, picture 1", "scale 1, picture 2"] * 2, [0.2, 0.4, 0.6, 0.8]
    alone = of_labels(texts, values, values).points[0].diversity
    assert alone == intervals.Estimate(0.5, None, None)
    over = of_labels(texts, values, values, prompts=["a", "a", "b", "b"]).points[0].diversity
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.5, scale=scipy.stats.sem([0.3, 0.7]))
    assert (over.mean, over.low, over.high) == pytest.approx((0.5, low, high))


POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = of_labels(
        [f"scale {n}" for n in range(len(points))], [float(r) for r, _ in points], [float(d) for _, d in points]
    )
    expected = [
        n
        for n, (reward, diversity) in enumerate(points)
        if not any(r >= reward and d >= diversity and (r > reward or d > diversity) for r, d in points)
    ]
    assert [int(point.x) for point in found.front] == expected


def test_csv_holds_every_number_of_the_curve() -> None:
    found = of_labels(
        ["scale 1, picture 1", "scale 0, picture 1", "scale 1, picture 2", "scale 0, picture 2"],
        [4.0, 1.0, 6.0, 1.0],
        [0.25, 0.5, 0.25, 0.5],
    )
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [(row["scale"], row["images"], row["reward"], row["diversity"]) for row in rows] == [
        ("0", "2", "1", "0.5"), ("1", "2", "5", "0.25"),
    ]  # fmt: skip
    low, high = scipy.stats.t.interval(0.95, 1, loc=5.0, scale=scipy.stats.sem([4.0, 6.0]))
    assert (float(rows[1]["reward_low"]), float(rows[1]["reward_high"])) == pytest.approx((low, high), rel=1e-5)
    assert [row["on_pareto_front"] for row in rows] == ["true", "true"]
    assert [float(row["above_base"]) for row in rows] == [0, 4] and rows[1]["diversity_low"] == ""
    low, high = scipy.stats.t.interval(0.95, 1, loc=4.0, scale=scipy.stats.sem([3.0, 5.0]))
    assert (float(rows[1]["above_base_low"]), float(rows[1]["above_base_high"])) == pytest.approx((low, high), rel=1e-5)
    assert [float(row["above_tuned"]) for row in rows] == [-4, 0] and rows[1]["above_tuned_low"] == "0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": ["scale 1"]}, "labels: there are 1 of them for 2 scores"),
        ({"diversity": [1.0]}, "diversity: there are 1 of them"),
        ({"prompts": ["a"]}, "prompts: there are 1 of them"),
        ({"scores": [1.0, float("nan")]}, "^scores: one is not a finite number"),
        ({"diversity": [1.0, float("inf")]}, "^diversity: one is not a finite number"),
        ({"texts": ["scale 1", "scale nan"]}, "'nan' in 'scale nan' is not a number"),
        ({"texts": ["scale 1", "scale x"]}, "'x' in 'scale x' is not a number"),
        ({"texts": [], "scores": []}, "there are none"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_labels(**{"texts": ["scale 1", "scale 2"], "scores": [1.0, 2.0]} | changes)


@given(st.lists(VALUES, min_size=1, max_size=12), st.data())
def test_the_best_have_the_highest_scores(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    found = pick.best([(scores, 1.0)], count)
    assert [scores[i] for i in found] == sorted(scores, reverse=True)[:count]
    assert len(set(found)) == count


def test_equals_stay_in_order_and_a_negative_weight_turns_the_order() -> None:
    assert pick.best([([1.0, 2.0, 2.0, 1.0], 1.0)], 4) == [1, 2, 0, 3]
    assert pick.best([([1.0, 2.0, 3.0], -1.0)], 2) == [0, 1]


def test_several_rewards_count_in_their_standard_deviations() -> None:
    """The second has a thousand times the first's scale, and does not drown it."""
    first, second = [3.0, 2.0, 1.0], [1000.0, 2000.0, 1500.0]
    assert pick.best([(first, 1.0), (second, 0.1)], 1) == [0]
    assert pick.best([(first, 0.1), (second, 1.0)], 1) == [1]
    assert pick.best([(first, 1.0), ([5.0, 5.0, 5.0], 9.0)], 1) == [0]


@pytest.mark.parametrize(
    ("rewards", "count", "words"),
    [
        ([([1.0, 2.0], 1.0)], 3, "count: 3 images are wanted and there are 2"),
        ([([1.0, float("nan")], 1.0)], 1, "not a finite number"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(rewards: list, count: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pick.best(rewards, count)
