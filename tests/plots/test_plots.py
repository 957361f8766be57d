"""What plots say: the numbers on their axes, their marks and words; never single pixels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from without_host import curve as curves
from without_host import figure, fonts, grid, intervals, labels, reward_curve, schedule, schedule_curve

VALUES = st.floats(-1e3, 1e3)
OKABE_ITO = {"#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000"}
"""As published: https://jfly.uni-koeln.de/color/"""


def of_scales(scales: list[float], values: list[float], diversity: list[float] | None = None) -> curves.Curve:
    """Two pictures of each."""
    texts = [f"scale {scale}, picture {n}, seed 7" for scale in scales for n in (1, 2)]
    return curves.curve(*labels.places(texts), values, diversity)


def drawn(curve: curves.Curve, title: str = "", theme: str = "light") -> Figure:
    return reward_curve.reward_curve(curve, theme, title, "reward")


def named(figure: Figure, words: str) -> Axes:
    """The axes whose title begins with these words."""
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(words)]
    return axes


def means_and_bars(axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Of the only series: (points, 2) of places and means, and (bars, 2) of the ends of those that are drawn."""
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    drawn_bars = [segment[:, 1] for segment in bars.get_segments() if len(segment)]
    return np.stack(line.get_data(), axis=1), np.array(drawn_bars).reshape(-1, 2)


def marks(axes: Axes) -> dict[str, float]:
    """Words at the upper end of an axis → their places."""
    return {text.get_text(): text.xy[0] for text in axes.texts}


@pytest.mark.parametrize(
    ("words", "of"), [("reward (mean", "reward"), ("reward minus the base's", "above_base"), ("diversity", "diversity")]
)
def test_means_stand_at_their_scales_with_their_intervals(words: str, of: str) -> None:
    curve = of_scales([0, 1, 3], [1.0, 2.0, 4.0, 6.0, 3.0, 3.5], [0.5, 0.5, 0.4, 0.4, 0.1, 0.1])
    points, bars = means_and_bars(named(drawn(curve), words))
    estimates = [getattr(point, of) for point in curve.points]
    assert points.tolist() == [[x, estimate.mean] for x, estimate in zip((0, 1, 3), estimates, strict=True)]
    assert bars == pytest.approx(np.array([(e.low, e.high) for e in estimates if e.low is not None]).reshape(-1, 2))


def test_base_and_tuned_model_are_marked_where_they_are() -> None:
    assert marks(drawn(of_scales([0, 1, 3], [1.0] * 6)).axes[0]) == {"base": 0.0, "tuned": 1.0}
    assert marks(drawn(of_scales([1, 2], [1.0] * 4)).axes[0]) == {"tuned": 1.0}
    assert marks(drawn(of_scales([2, 3], [1.0] * 4)).axes[0]) == {}
    switches = ["switch 0.5, scale 1", "switch 1, scale 1"]
    assert marks(drawn(curves.curve(*labels.places(switches), [1.0, 2.0])).axes[0]) == {"base": 1.0}


def test_an_axis_is_cut_only_where_every_mean_has_its_interval() -> None:
    whole = drawn(curves.curve(*labels.places(["scale 1", "scale 2"]), [21.0, 22.0]))
    assert whole.axes[0].get_ylim()[0] == 0
    below = drawn(curves.curve(*labels.places(["scale 1", "scale 2"]), [-21.0, -22.0]))
    assert below.axes[0].get_ylim()[1] == 0
    # Nor do points touch the other end.
    assert whole.axes[0].get_ylim()[1] > 22 * 1.04 and below.axes[0].get_ylim()[0] < -22 * 1.04
    cut = drawn(of_scales([1, 2], [21.0, 21.1, 22.0, 22.1], [0.5, 0.5, 0.4, 0.4]))
    assert named(cut, "reward (mean").get_ylim()[0] > 0 and named(cut, "diversity").get_ylim()[0] == 0
    trade_off = named(cut, "reward against diversity")
    assert trade_off.get_xlim()[0] == 0 and trade_off.get_ylim()[0] > 0


def test_each_series_has_a_name_a_colour_and_a_marker_of_its_own() -> None:
    texts = [f"switch 0.{switch}, scale {scale}" for switch in range(4) for scale in (1, 2)]
    plot = drawn(curves.curve(*labels.places(texts), [float(n) for n in range(8)]))
    (legend,) = plot.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"switch 0.{switch}" for switch in range(4)]
    lines = [container.lines[0] for container in plot.axes[0].containers]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 4


@pytest.mark.parametrize("theme", figure.THEMES)
def test_colours_are_those_of_okabe_and_ito(theme: str) -> None:
    assert {to_hex(colour) for colour in figure.THEMES[theme].series} <= OKABE_ITO


def test_the_front_is_connected_and_its_points_are_named_by_their_scale() -> None:
    curve = of_scales([0, 1, 2], [1.0, 1.0, 3.0, 3.0, 2.0, 2.0], [0.5, 0.5, 0.3, 0.3, 0.1, 0.1])
    axes = named(drawn(curve), "reward against diversity")
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    assert [text.xy for text in axes.texts] == [(0.5, 1.0), (0.3, 3.0), (0.1, 2.0)]
    front = axes.lines[0]
    assert np.allclose(np.stack(front.get_data(), axis=1), [(0.3, 3.0), (0.5, 1.0)])


@settings(max_examples=10)
@given(
    st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), st.booleans(), st.sampled_from(["light", "dark"]),
    st.text(max_size=300),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_curve_can_be_drawn_and_every_word_is_inside(
    points: list[tuple[float, float]], with_diversity: bool, theme: str, title: str
) -> None:
    """Also formulas that are none, and other scripts."""
    texts = [f"switch 0.{n % 2}, scale {n}, picture {k}" for n in range(len(points)) for k in (1, 2)]
    values = [reward + k for reward, _ in points for k in (0, 1)]
    diversity = [value for _, value in points for _ in (0, 1)] if with_diversity else None
    plot = drawn(curves.curve(*labels.places(texts), values, diversity), title, theme)
    image = figure.picture(plot)
    assert image.size == tuple(plot.bbox.size.round())
    assert to_hex(np.array(image.getpixel((0, image.height - 1))) / 255) == figure.THEMES[theme].background
    for text in [plot._suptitle, *(axes._left_title for axes in plot.axes)]:
        if text is not None and text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= image.width + 1 and box.y0 >= -1 and box.y1 <= image.height + 1


def test_long_names_that_end_unlike_are_told_apart() -> None:
    """As those of the LoRAs of one training, with what else an axis says."""
    names = [
        f"lora flowgrpo_pickscore_sd35m_rank32_lr3e4_step_003000{other}"
        for other in ("", ", cfg 3", ", cfg 4.5", ", cfg 6")
    ]
    texts = [f"{name}, scale {n}" for name in names for n in (1, 2)]
    plot = drawn(curves.curve(*labels.places(texts), [1.0] * len(texts), None))
    (legend,) = plot.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(set(shown)) == len(names)
    figure.picture(plot)
    assert legend.get_window_extent().x1 <= plot.bbox.width


@pytest.fixture
def with_a_far_eastern_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """DejaVu Sans in the name of one: which machine has one is not known."""
    file = font_manager.findfont("DejaVu Sans")
    own = [font for font in font_manager.fontManager.ttflist if "DejaVu" in font.name]
    entry = replace(next(font for font in own if font.fname == file), name="Noto Sans KR")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, entry])
    fonts._files.cache_clear()
    yield file
    fonts._files.cache_clear()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_in_other_scripts_are_drawn_by_a_font_that_has_them(with_a_far_eastern_font: str) -> None:
    plot = drawn(of_scales([0, 1], [1.0, 2.0, 4.0, 6.0]), "水墨 + 한국어 " * 20)
    figure.picture(plot)
    assert plot._suptitle.get_fontfamily()[-1] == "Noto Sans KR"
    assert plot.axes[0]._left_title.get_fontfamily() == rcParams["font.family"]
    assert plot._suptitle.get_text().endswith("…")


def test_a_grid_asks_for_the_font_of_its_letters(with_a_far_eastern_font: str) -> None:
    assert fonts.file_for("水墨") == with_a_far_eastern_font
    assert fonts.file_for("ink, cafe\u0301 – Ж") is None
    asked: list[str] = []
    pictures = [Image.new("RGB", (64, 64))] * 2
    grid.labelled_grid(pictures, ["lora 水墨", "lora ink"], 2, "", lambda text: asked.append(text) or None)
    assert any("水墨" in text for text in asked)


def test_without_such_a_font_names_are_drawn_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    fonts._files.cache_clear()
    assert fonts.file_for("水墨") is None and fonts.families() == []
    fonts._files.cache_clear()


def test_words_can_be_read_at_half_the_size() -> None:
    """Eight pixels or more where the widest plot is shown 512 pixels wide."""
    plot = drawn(of_scales([0, 1, 3], [1.0, 2.0, 4.0, 6.0, 3.0, 3.5], [0.5, 0.5, 0.4, 0.4, 0.1, 0.1]), "a title")
    image = figure.picture(plot)
    assert image.width == 1024
    texts = [text for text in plot.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(texts) > 20
    assert min(text.get_fontsize() * plot.dpi / 72 for text in texts) * 512 / image.width >= 8


def test_threads_draw_what_one_draws() -> None:
    curve = of_scales([0, 1, 3], [1.0, 2.0, 4.0, 6.0, 3.0, 3.5])
    alone = figure.picture(drawn(curve)).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: figure.picture(drawn(curve)).tobytes(), range(8))) == {alone}
    assert "matplotlib.pyplot" not in sys.modules


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"^plots need the Python package matplotlib, .*: pip install matplotlib\.$"):
        drawn(of_scales([0], [1.0, 2.0]))


@pytest.mark.parametrize(
    "plan", [schedule.constant(2), schedule.ramp(-10, 10, "cosine"), schedule.keyframes("0:0, 0.5:3", "step")], ids=str
)
def test_a_schedule_is_shown_from_its_first_to_its_last_scale(plan: schedule.Schedule) -> None:
    (axes,) = schedule_curve.schedule_curve(plan).axes
    steps, scales = axes.lines[0].get_data()
    assert list(scales) == list(plan.per_step(len(scales))) and (steps[0], axes.get_xlim()) == (0, (0, 1))
    low, high = axes.get_ylim()
    assert low < min(0, *(s for _, s in plan.points)) and max(1, *(s for _, s in plan.points)) < high
    assert str(plan) in axes.get_title(loc="left")
    assert {text.get_text(): text.xy[1] for text in axes.texts} == {"base": 0.0, "tuned": 1.0}


def test_estimates_without_an_interval_have_no_bar() -> None:
    point = curves.Point("", 1.0, 1, intervals.Estimate(2.0, None, None))
    _, bars = means_and_bars(drawn(curves.Curve("scale", (point,))).axes[0])
    assert not len(bars)
