"""The curve in the schedule nodes shows what the server will do: `web/schedule.js`, under node, is `schedule.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from javascript import module, needs_node
from without_host import schedule as s

pytestmark = needs_node

ANSWER = """
function answer({ node, widgets, progress }) {
  try {
    const schedule = scheduleOf(node, widgets);
    const scales = progress.map((p) => scaleAt(schedule, p));
    return { scales, outline: outline(schedule), text: describe(schedule) };
  } catch (error) {
    return { error: error.message };
  }
}
"""

SERVER: dict[str, Callable[..., s.Schedule]] = {
    "RLGScale": lambda scale, start_percent, end_percent, outside: s.in_range(
        scale, start_percent, end_percent, outside
    ),
    "RLGCombinedGeneration": lambda switch_percent, scale: s.combined_generation(switch_percent, scale),
    "RLGRamp": lambda start_scale, end_scale, curve, power: s.ramp(start_scale, end_scale, curve, power),
    "RLGKeyframes": lambda keyframes, interpolation: s.keyframes(keyframes, interpolation),
}

scales = st.floats(-10, 10).map(lambda x: round(x, 3))
positions = st.floats(0, 1).map(lambda x: round(x, 3))
interpolations = st.sampled_from(["step", "linear"])


@st.composite
def _written(draw: st.DrawFn) -> str:
    """Keyframes as people write them; some in the wrong order, or with what is no position."""
    at = draw(st.lists(positions | st.floats(-0.1, 1.1), min_size=1, max_size=6))
    pairs = [f"{p}:{draw(scales)}" for p in (sorted(set(at)) if draw(st.booleans()) else at)]
    return draw(st.sampled_from([", ", ",", "\n", " ,\n "])).join(pairs)


# Python also reads the digits of other scripts; nobody writes schedules in them. Which characters are unassigned is
# another matter in each version of Unicode.
_characters = st.characters(exclude_categories=["Nd", "Cs", "Cn"]) | st.sampled_from(
    "0123456789.:,+-_eE \n\t\x1f\x85\ufeff"
)
_numberlike = st.from_regex(
    r"[+-]?[0-9_]{0,3}\.?[0-9_]{0,3}(e[+-]?[0-9]{1,3})?|[+-]?(inf|nan|infinity)|0x10", fullmatch=True
)
_texts = (
    _written()
    | st.text(_characters, max_size=20)
    | st.lists(st.builds("{}:{}".format, _numberlike, _numberlike), max_size=3).map(",".join)
    | st.text(_characters, min_size=70, max_size=90)
)

cases = st.one_of(
    st.tuples(
        st.just("RLGScale"),
        st.fixed_dictionaries(
            {"scale": scales, "start_percent": positions, "end_percent": positions, "outside": scales}
        ),
    ),
    st.tuples(st.just("RLGCombinedGeneration"), st.fixed_dictionaries({"switch_percent": positions, "scale": scales})),
    st.tuples(
        st.just("RLGRamp"),
        st.fixed_dictionaries(
            {
                "start_scale": scales,
                "end_scale": scales,
                "curve": st.sampled_from(["linear", "cosine", "power"]),
                "power": st.floats(0.05, 20),
            }
        ),
    ),
    st.tuples(st.just("RLGKeyframes"), st.fixed_dictionaries({"keyframes": _texts, "interpolation": interpolations})),
)


@pytest.fixture(scope="module")
def browser_side() -> Iterator[Callable[[str, dict[str, Any], list[float]], dict[str, Any]]]:
    """`web/schedule.js` as a function of node id, widgets and progress."""
    with module("schedule.js", ANSWER) as ask:
        yield lambda node, widgets, progress: ask({"node": node, "widgets": widgets, "progress": progress})


@given(case=cases, steps=st.integers(1, 60))
def test_the_curve_is_what_the_server_does(browser_side, case, steps) -> None:
    """Same scale at every step; where the server refuses the widgets, the same sentence."""
    node, widgets = case
    progress = [i / steps for i in range(steps)]
    answer = browser_side(node, widgets, progress)
    try:
        schedule = SERVER[node](**widgets)
    except ValueError as error:
        assert answer == {"error": str(error)}
    else:
        assert answer["scales"] == pytest.approx([schedule.at(p) for p in progress], abs=1e-9)


@given(case=cases)
def test_the_line_runs_along_the_schedule(browser_side, case) -> None:
    """From 0 to 1, never back, and between two corners of one step curve flat; at each corner the schedule's scale."""
    node, widgets = case
    answer = browser_side(node, widgets, [])
    if "error" in answer:
        return
    schedule, line = SERVER[node](**widgets), answer["outline"]
    at = [position for position, _ in line]
    assert at[0] == 0 and at[-1] == 1 and at == sorted(at)
    for (start, scale), (end, next_scale) in zip(line, line[1:], strict=False):
        if end - start > 1e-4:  # not a jump, nor closer than the tolerance with which positions meet
            middle = (start + end) / 2
            between = (scale + next_scale) / 2
            # Chords of the 64 parts of a smooth curve; of a power near 0 the first one is steep.
            bend = abs(next_scale - scale) / 2 if schedule.curve in ("cosine", "power") else 1e-9
            assert schedule.at(middle) == pytest.approx(between, abs=bend + 1e-9)


@given(case=cases)
def test_the_text_for_screen_readers_names_every_scale(browser_side, case) -> None:
    node, widgets = case
    answer = browser_side(node, widgets, [])
    if "error" not in answer:
        for _, scale in SERVER[node](**widgets).points:
            assert str(s.constant(scale)) in answer["text"]
