"""Figures of the demo's pair, rendered in a real ComfyUI: what is put beside what, and the graphs that make it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from demo.client import ComfyClient
from demo.graphs import Setting, sweep_prompt
from demo.held_out import Asked
from demo.picture import opened, sheet
from demo.run import PROMPT_SEED
from demo.scenes import SIDE
from demo.tasks import TASKS

FIRST_SEED = 1000
"""Of the first prompt's noise; the next prompt has the next one, as in the demo's measurement."""
LIST = 64
"""Prompts to choose from, of a fixed order."""
FIRST_LORA = "composition"
OPEN_PROMPT = "a green circle"
"""Leaves place, size and background open, so that pictures of it may differ."""


Figure = Callable[[ComfyClient], Image.Image]


def scales(*values: float) -> list[Setting]:
    return [Setting(scale) for scale in values]


def with_cfg(cfg: float, tuned_cfg: float, scale: float) -> Setting:
    return Setting(scale, cfg=cfg, tuned_cfg=tuned_cfg, name=f"base {cfg:g}, tuned {tuned_cfg:g}")


def render(
    client: ComfyClient, settings: Sequence[Setting], text: str, seed: int, batch: int = 1, lora: str = FIRST_LORA
) -> dict[str, list[Image.Image]]:
    """Every setting from the same noise: the pictures of each node of `sweep_prompt`."""
    pngs = client.outputs(sweep_prompt(lora, settings, text, batch, seed))
    return {name: [opened(png) for png in of_node] for name, of_node in pngs.items()}


# Figures


def by_prompt(
    settings: Sequence[Setting], right: int, wrong: int, lora: str = FIRST_LORA, curves: bool = False
) -> Figure:
    """Settings side by side, a row for each prompt and noise: so many that the base draws right, and so many wrong."""

    def draw(client: ComfyClient) -> Image.Image:
        chosen = chosen_prompts(client, right, wrong, lora)
        rendered = [render(client, settings, prompt.text, seed, lora=lora) for prompt, seed in chosen]
        numbers = range(len(settings))
        pictures = [[row[f"save{number}"][0] for number in numbers] for row in rendered]
        labels = [prompt.text for prompt, _ in chosen]
        if curves:
            pictures.insert(0, [_on_paper(rendered[0][f"curve{number}"][0]) for number in numbers])
            labels.insert(0, "scale over the steps")
        return sheet(pictures, [str(setting) for setting in settings], labels)

    return draw


def chosen_prompts(client: ComfyClient, right: int, wrong: int, lora: str = FIRST_LORA) -> list[tuple[Asked, int]]:
    """The first held-out prompts that the base model draws right, and the first it does not, with their noises' seeds.

    Only the base's picture is looked at: what the tuned model makes of them is not chosen.
    """
    found: dict[bool, list[tuple[Asked, int]]] = {True: [], False: []}
    for asked, seed in unchosen_prompts(LIST, lora):
        picture = _base_picture(client, asked.text, seed)
        found[TASKS[lora].judge(np.array(picture), asked).right].append((asked, seed))
        if len(found[True]) >= right and len(found[False]) >= wrong:
            return [*found[True][:right], *found[False][:wrong]]
    raise ValueError(f"the base model draws fewer than {right} of {LIST} prompts right, or fewer than {wrong} wrong")


def unchosen_prompts(count: int, lora: str = FIRST_LORA) -> list[tuple[Asked, int]]:
    """The first held-out prompts, whatever the models make of them, with their noises' seeds."""
    asked = TASKS[lora].prompts(PROMPT_SEED, count, held_out=True)
    return [(one, FIRST_SEED + index) for index, one in enumerate(asked)]


@functools.cache
def _base_picture(client: ComfyClient, text: str, seed: int) -> Image.Image:
    return render(client, [Setting(0.0)], text, seed)["save0"][0]


def by_noise(settings: Sequence[Setting], text: str, pictures: int) -> Figure:
    """A row for each setting: pictures of one prompt from several noises, the same ones in every row."""

    def draw(client: ComfyClient) -> Image.Image:
        rendered = render(client, settings, text, FIRST_SEED, pictures)
        rows = [rendered[f"save{number}"] for number in range(len(settings))]
        return sheet(rows, [f"noise {n + 1}" for n in range(pictures)], [str(setting) for setting in settings])

    return draw


def beginning_of_list(settings: Sequence[Setting], counts: dict[str, int], side: int) -> Figure:
    """A row for each of the first held-out prompts of some LoRAs, pictures `side` pixels wide. Nothing is chosen."""

    def draw(client: ComfyClient) -> Image.Image:
        rows, labels = [], []
        for lora, count in counts.items():
            for asked, seed in unchosen_prompts(count, lora):
                rendered = render(client, settings, asked.text, seed, lora=lora)
                pictures = [rendered[f"save{number}"][0] for number in range(len(settings))]
                rows.append([picture.resize((side, side), Image.Resampling.LANCZOS) for picture in pictures])
                labels.append(asked.text)
        return sheet(rows, [str(setting) for setting in settings], labels)

    return draw


def _on_paper(picture: Image.Image) -> Image.Image:
    """A picture as wide as the others of its grid, in the middle of its cell."""
    small = picture.resize((SIDE, round(SIDE * picture.height / picture.width)), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    cell.paste(small, (0, (SIDE - small.height) // 2))
    return cell
