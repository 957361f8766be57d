"""Figures of the demo's pair, rendered in a real ComfyUI: what is put beside what, and the graphs that make it."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo.client import ComfyClient, Json
from demo.graphs import CFG, ksampler, node, pair, shown
from demo.picture import PAPER, grid
from demo.rewards import composition
from demo.run import PROMPT_SEED
from demo.scenes import SIDE, Prompt, prompts

FIRST_SEED = 1000
"""Of the first prompt's noise; the next prompt has the next one, as in the demo's measurement."""
LIST = 64
"""Prompts to choose from, of a fixed order."""
ONE_REWARD, OTHER_REWARD = "composition", "compressibility"
OPEN_PROMPT = "a green circle"
"""Leaves place, size and background open, so that pictures of it may differ."""


@dataclass(frozen=True)
class Look:
    """One way to sample: what it is called and the inputs of RLG KSampler in which it differs.

    Attributes:
        title: of its column or row.
        scale: where no schedule replaces it.
        schedule: id and widgets of a schedule node.
        cfg: of both models, or of the base alone where `tuned_cfg` is given.
        tuned_cfg: of the tuned model.
    """

    title: str
    scale: float = 1.0
    schedule: tuple[str, Json] | None = None
    cfg: float = CFG
    tuned_cfg: float | None = None


@dataclass(frozen=True)
class Rendered:
    """Pictures of one graph: of each look a batch, and the curve that its schedule node shows."""

    pictures: list[list[Image.Image]]
    curves: list[Image.Image | None]


Figure = Callable[[ComfyClient], Image.Image]


def constant(scale: float) -> Look:
    return Look(f"s = {scale:g}" + {0.0: " base", 1.0: " tuned"}.get(scale, ""), scale)


def scales(*values: float) -> list[Look]:
    return [constant(scale) for scale in values]


def combined(switch: float, scale: float) -> Look:
    widgets = {"switch_percent": switch, "scale": scale}
    return Look(f"base to {switch:g}, then {scale:g}", schedule=("RLGCombinedGeneration", widgets))


def ramp(end: float, power: float) -> Look:
    widgets = {"start_scale": 0.0, "end_scale": end, "curve": "power", "power": power}
    return Look(f"0 to {end:g}, power {power:g}", schedule=("RLGRamp", widgets))


def with_cfg(cfg: float, tuned_cfg: float, scale: float) -> Look:
    return Look(f"base {cfg:g}, tuned {tuned_cfg:g}", scale, cfg=cfg, tuned_cfg=tuned_cfg)


def run(client: ComfyClient, graph: Mapping[str, Json]) -> dict[str, list[Image.Image]]:
    """The pictures of each node of a graph that shows some."""
    return {name: [_opened(png) for png in pngs] for name, pngs in client.outputs(dict(graph)).items()}


def render(
    client: ComfyClient, looks: Sequence[Look], text: str, seed: int, batch: int = 1, lora: str = ONE_REWARD
) -> Rendered:
    """Every look from the same noise."""
    graph = pair(text, batch, lora)
    for number, look in enumerate(looks):
        inputs = ksampler(seed, look.cfg, scale=look.scale)
        if look.schedule is not None:
            kind, widgets = look.schedule
            graph[f"curve{number}"] = node(kind, **widgets)
            inputs["schedule"] = [f"curve{number}", 0]
        if look.tuned_cfg is not None:
            graph[f"cfg{number}"] = node("PrimitiveFloat", value=look.tuned_cfg)
            inputs["tuned_cfg"] = [f"cfg{number}", 0]
        graph[f"sample{number}"] = node("RLGKSampler", **inputs)
        graph |= shown(number)
    found = run(client, graph)
    numbers = range(len(looks))
    curves = [found.get(f"curve{number}") for number in numbers]
    return Rendered([found[f"save{number}"] for number in numbers], [curve and curve[0] for curve in curves])


# Figures


def by_prompt(looks: Sequence[Look], right: int, wrong: int, lora: str = ONE_REWARD, curves: bool = False) -> Figure:
    """Looks side by side, a row for each prompt and noise: so many that the base draws right, and so many wrong."""

    def draw(client: ComfyClient) -> Image.Image:
        chosen = chosen_prompts(client, right, wrong)
        rendered = [render(client, looks, prompt.text, seed, lora=lora) for prompt, seed in chosen]
        pictures = [[batch[0] for batch in row.pictures] for row in rendered]
        labels = [prompt.text for prompt, _ in chosen]
        if curves:
            pictures.insert(0, [_on_paper(curve) for curve in rendered[0].curves])
            labels.insert(0, "scale over the steps")
        return grid(pictures, [look.title for look in looks], labels)

    return draw


def chosen_prompts(client: ComfyClient, right: int, wrong: int) -> list[tuple[Prompt, int]]:
    """The first held-out prompts that the base model draws right, and the first it does not, with their noises' seeds.

    Only the base's picture is looked at: what the tuned model makes of them is not chosen.
    """
    found: dict[bool, list[tuple[Prompt, int]]] = {True: [], False: []}
    for index, prompt in enumerate(prompts(PROMPT_SEED, LIST, held_out=True)):
        picture = _base_picture(client, prompt.text, FIRST_SEED + index)
        found[bool(composition(np.array(picture), prompt).correct)].append((prompt, FIRST_SEED + index))
        if len(found[True]) >= right and len(found[False]) >= wrong:
            return [*found[True][:right], *found[False][:wrong]]
    raise ValueError(f"the base model draws fewer than {right} of {LIST} prompts right, or fewer than {wrong} wrong")


@functools.cache
def _base_picture(client: ComfyClient, text: str, seed: int) -> Image.Image:
    return render(client, [constant(0.0)], text, seed).pictures[0][0]


def by_noise(looks: Sequence[Look], text: str, pictures: int) -> Figure:
    """A row for each look: pictures of one prompt from several noises, the same ones in every row."""

    def draw(client: ComfyClient) -> Image.Image:
        rendered = render(client, looks, text, FIRST_SEED, pictures)
        return grid(rendered.pictures, [f"noise {n + 1}" for n in range(pictures)], [look.title for look in looks])

    return draw


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _on_paper(picture: Image.Image) -> Image.Image:
    """A picture as wide as the others of its grid, in the middle of its cell."""
    small = picture.resize((SIDE, round(SIDE * picture.height / picture.width)), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (SIDE, SIDE), PAPER)
    cell.paste(small, (0, (SIDE - small.height) // 2))
    return cell
