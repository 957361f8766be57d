"""A measurement as a sheet of pictures, a table, a CSV file and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from demo.measure import Measured, Setting
from demo.picture import grid
from rewards.intervals import Estimate, bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REWARD_NAMES = {
    "composition": "composition reward (share of the prompt that is right)",
    "compressibility": "compressibility reward (minus kB as JPEG)",
}

DIVERSITY_NAME = "diversity (distance of pixels, per prompt)"


@dataclass(frozen=True)
class Point:
    """What one setting gave."""

    lora: str
    setting: Setting
    reward: Estimate
    above_tuned: Estimate
    """Reward minus that of the same prompts and seeds at s = 1."""
    accuracy: Estimate
    diversity: Estimate


TUNED = Setting(1.0)


def points(measured: Measured) -> list[Point]:
    """One for each setting, of which the tuned model, s = 1, has to be one."""
    rewards, accuracy, diversity = measured.rewards, measured.accuracy, measured.diversity
    tuned = measured.settings.index(TUNED)
    return [
        Point(
            lora=measured.lora,
            setting=setting,
            reward=bootstrap(rewards[index]),
            above_tuned=bootstrap(rewards[index] - rewards[tuned]),
            accuracy=bootstrap(accuracy[index]),
            diversity=bootstrap(diversity[index]),
        )
        for index, setting in enumerate(measured.settings)
    ]


def table(found: Sequence[Point]) -> str:
    """The points of one LoRA, for a console: means with 95 % confidence intervals."""
    lines = [f"{'':<24}{'reward':<24}{'reward - that at s = 1':<25}{'all correct':<22}diversity"]
    for point in found:
        lines.append(
            f"{point.setting!s:<24}{point.reward!s:<24}{point.above_tuned!s:<25}{point.accuracy!s:<22}{point.diversity}"
        )
    return "\n".join(lines)


def write_csv(found: Sequence[Point], file: io.TextIOBase) -> None:
    """A line for each LoRA and setting; of each quantity mean and the ends of its interval."""
    quantities = ("reward", "above_tuned", "accuracy", "diversity")
    rows = csv.writer(file, lineterminator="\n")
    header = [f"{name}{end}" for name in quantities for end in ("", "_low", "_high")]
    rows.writerow(["lora", "scale", "switch_percent", *header])
    for point in found:
        estimates: list[Estimate] = [getattr(point, name) for name in quantities]
        numbers = ["" if v is None else f"{v:.4f}" for e in estimates for v in (e.mean, e.low, e.high)]
        switch = "" if point.setting.switch is None else f"{point.setting.switch:g}"
        rows.writerow([point.lora, f"{point.setting.scale:g}", switch, *numbers])


def plot(found: Sequence[Point], pictures_per_point: int) -> bytes:
    """PNG: reward and diversity against the scale, and against each other, a row for each LoRA, with 95 % intervals."""
    from matplotlib.figure import Figure

    loras = list(dict.fromkeys(point.lora for point in found))
    figure = Figure(figsize=(14, 3.8 * len(loras)), layout="constrained")
    for row, lora in zip(figure.subplots(len(loras), 3, squeeze=False), loras, strict=True):
        of_lora = [point for point in found if point.lora == lora]
        constant = sorted((p for p in of_lora if p.setting.switch is None), key=lambda p: p.setting.scale)
        combined = [point for point in of_lora if point.setting.switch is not None]
        _against_scale(row[0], constant, "reward", REWARD_NAMES[lora])
        _against_scale(row[1], constant, "diversity", DIVERSITY_NAME)
        _trade_off(row[2], constant, "scale s", "o-", lambda point: f"{point.setting.scale:g}")
        if combined:
            _trade_off(row[2], combined, "base, then tuned", "s--", lambda point: f"from {point.setting.switch:g}")
        row[2].set(xlabel="reward", ylabel="diversity", title="trade-off")
        row[2].legend(fontsize=8)
        row[0].set_ylabel(f"{lora} LoRA")
    figure.suptitle(f"{pictures_per_point} pictures of held-out prompts per point; bands: 95 % bootstrap", fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _against_scale(axes: Axes, found: Sequence[Point], name: str, title: str) -> None:
    scales = [point.setting.scale for point in found]
    estimates: list[Estimate] = [getattr(point, name) for point in found]
    if all(e.low is not None for e in estimates):
        axes.fill_between(scales, [e.low for e in estimates], [e.high for e in estimates], alpha=0.25)
    axes.plot(scales, [e.mean for e in estimates], marker="o")
    axes.axvline(1, color="gray", linewidth=0.8, linestyle=":")
    axes.set_xlabel("RLG scale s (0: base, 1: tuned)")
    axes.set_title(title, fontsize=10)


def _trade_off(axes: Axes, found: Sequence[Point], label: str, style: str, name: Callable[[Point], str]) -> None:
    rewards, diversities = [p.reward.mean for p in found], [p.diversity.mean for p in found]
    axes.plot(rewards, diversities, style, label=label)
    for point, x, y in zip(found, rewards, diversities, strict=True):
        axes.annotate(name(point), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)


def sheet(measured: Measured, rows: int) -> Image.Image:
    """The first picture of the first `rows` prompts at every constant scale."""
    count = min(rows, len(measured.prompts))
    shown = [index for index, setting in enumerate(measured.settings) if setting.switch is None]
    pictures = [[Image.fromarray(measured.pictures[index, row, 0]) for index in shown] for row in range(count)]
    return grid(
        pictures,
        [str(measured.settings[index]) for index in shown],
        [prompt.text for prompt in measured.prompts[:count]],
    )
