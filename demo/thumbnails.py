"""The thumbnails of the bundled workflows: pictures of the demo's pair that show what each workflow is about.

Drawn by the command of `demo.guide`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from demo.client import ComfyClient, Json
from demo.figures import FIRST_SEED, OPEN_PROMPT, Figure, by_noise, by_prompt, chosen_prompts, scales
from demo.graphs import Setting, combined, node, prompted, ramp, sampler_inputs
from demo.picture import opened, sheet
from demo.rewards import composition
from demo.scenes import Prompt
from demo.server import REPO
from demo.trained_pair import CHECKPOINT, LORAS
from rewards.pick import best

WORKFLOWS, HELP = REPO / "workflows", REPO / "web" / "docs" / "images"
CARD = 512
"""Pixels of each side."""
BRANCHES = tuple(f"branch {number}" for number in range(1, 5))
FRAME = 6
"""Pixels around the best picture."""
LORA_INPUTS = {f"lora_{number}": LORAS.get(name, name) for number, name in enumerate([*LORAS, "none"], start=1)}


def card(figure: Figure) -> Figure:
    """A figure in the middle of a square, as the template browser shows it."""

    def draw(client: ComfyClient) -> Image.Image:
        return ImageOps.pad(figure(client), (CARD, CARD), Image.Resampling.LANCZOS, color="white")

    return draw


def two_rewards(client: ComfyClient) -> Image.Image:
    """A row for each prompt: the base, each LoRA alone, and both at once, as a chain of RLG Model makes them."""
    ways = {"base": (0.0, 0.0), "composition": (1.6, 0.0), "small file": (0.0, 1.6), "both": (1.6, 1.6)}
    chosen = chosen_prompts(client, right=1, wrong=2)
    pictures = []
    for prompt, seed in chosen:
        graph = _sampling(prompt.text)
        graph["first"] = node("RLGLoadLora", model=["model", 0], lora_name=LORAS["composition"], strength=1.0)
        graph["second"] = node("RLGLoadLora", model=["model", 0], lora_name=LORAS["compressibility"], strength=1.0)
        for name, (one, other) in ways.items():
            graph[f"{name} one"] = node("RLGModel", base=["model", 0], tuned=["first", 0], scale=one)
            graph[f"{name} both"] = node("RLGModel", base=[f"{name} one", 0], tuned=["second", 0], scale=other)
            graph[f"{name} sampled"] = node("KSampler", model=[f"{name} both", 0], **sampler_inputs(seed))
            graph |= _shown(name, f"{name} sampled")
        found = client.outputs(graph)
        pictures.append([opened(found[name][0]) for name in ways])
    return sheet(pictures, list(ways), [prompt.text for prompt, _ in chosen])


def branches(client: ComfyClient) -> Image.Image:
    """A row for each prompt: several ends of one beginning."""
    rows = _branches(client)
    return sheet([pictures for _, pictures in rows], BRANCHES, [prompt.text for prompt, _ in rows])


def picked(client: ComfyClient) -> Image.Image:
    """The same with what each is worth to the LoRA's own reward; framed is the one that RLG Pick Best takes."""
    rows, worth = _branches(client), []
    for prompt, pictures in rows:
        scores = [composition(np.array(picture), prompt).reward for picture in pictures]
        (chosen,) = best([(scores, 1.0)], 1)
        pictures[chosen] = _with_frame(pictures[chosen])
        worth += [f"{score:.2f}" for score in scores]
    return sheet([pictures for _, pictures in rows], BRANCHES, [prompt.text for prompt, _ in rows], worth)


def _with_frame(picture: Image.Image) -> Image.Image:
    return ImageOps.expand(ImageOps.crop(picture, FRAME), FRAME, fill="#e69f00")


def _branches(client: ComfyClient) -> list[tuple[Prompt, list[Image.Image]]]:
    """Prompts with their branches."""
    rows = []
    for prompt, seed in chosen_prompts(client, right=0, wrong=3):
        graph = _sampling(prompt.text)
        graph["tuned"] = node("RLGLoadLora", model=["model", 0], lora_name=LORAS["composition"], strength=1.0)
        graph["sampled"] = node(
            "RLGBranch", base=["model", 0], tuned=["tuned", 0], scale=1.6, branches=len(BRANCHES), branch_percent=0.15,
            noise_level=0.9, **sampler_inputs(seed),
        )  # fmt: skip
        found = client.outputs(graph | _shown("branches", "sampled"))
        rows.append((prompt, [opened(png) for png in found["branches"]]))
    return rows


def seed_axis(client: ComfyClient) -> Image.Image:
    """What RLG Grid makes of a sweep with three seeds."""
    return _swept(client, node("RLGAxis", vary="seed", values=f"{FIRST_SEED}, {FIRST_SEED + 1}, {FIRST_SEED + 2}"))


def lora_axis(client: ComfyClient) -> Image.Image:
    """The same with three LoRAs and one noise."""
    return _swept(client, node("RLGLoraAxis", model=["model", 0], **LORA_INPUTS))


def _swept(client: ComfyClient, axis: Json) -> Image.Image:
    graph = _sampling(OPEN_PROMPT)
    graph["tuned"] = node("RLGLoadLora", model=["model", 0], lora_name=LORAS["composition"], strength=1.0)
    graph["axis"] = axis
    graph["sampled"] = node(
        "RLGSweep", base=["model", 0], tuned=["tuned", 0], scales="0, 1, 2, 3", switch_percents="", axis=["axis", 0],
        **sampler_inputs(FIRST_SEED),
    )  # fmt: skip
    graph |= _shown("pictures", "sampled")
    graph["grid"] = node(
        "RLGGrid", images=["pictures decoded", 0], labels=["sampled", 1], columns=0, title=OPEN_PROMPT.capitalize()
    )
    graph["seen"] = node("PreviewImage", images=["grid", 0])
    return opened(client.outputs(graph)["seen"][0])


def _sampling(text: str, batch: int = 1) -> dict[str, Json]:
    return {"model": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT), **prompted(["model", 1], text, batch)}


def _shown(name: str, sampler: str) -> dict[str, Json]:
    return {
        f"{name} decoded": node("VAEDecode", samples=[sampler, 0], vae=["model", 2]),
        name: node("PreviewImage", images=[f"{name} decoded", 0]),
    }


def reward_curve(client: ComfyClient) -> Image.Image:
    """Four noises at each scale, and what they are worth: small files, which the LoRA was tuned for."""
    prompt, seed = chosen_prompts(client, right=1, wrong=1)[0]
    graph = _sampling(prompt.text, batch=4)
    graph["tuned"] = node("RLGLoadLora", model=["model", 0], lora_name=LORAS["compressibility"], strength=1.0)
    graph["sampled"] = node(
        "RLGSweep", base=["model", 0], tuned=["tuned", 0], scales="0, 0.5, 1, 1.6, 2, 3", switch_percents="",
        **sampler_inputs(seed),
    )  # fmt: skip
    graph["reward"] = node("RLGLoadReward", name="jpeg_compressibility", file="auto")
    graph |= _shown("pictures", "sampled")
    images, labels = ["pictures decoded", 0], ["sampled", 1]
    graph["scores"] = node("RLGScore", images=images, prompt=prompt.text, reward=["reward", 0])
    graph["diversity"] = node("RLGDiversity", images=images, labels=labels, measure="pixels", file="auto")
    graph["plot"] = node(
        "RLGPlot", scores=["scores", 0], labels=labels, diversity=["diversity", 0], theme="light", reward_name="reward",
        title="",
    )  # fmt: skip
    graph["curve"] = node("PreviewImage", images=["plot", 0])
    found = client.outputs(graph)
    scale_names = ["s = 0", "0.5", "1", "1.6", "2", "3"]
    pictures = [opened(png) for png in found["pictures"]]
    above = sheet([pictures[noise::4] for noise in range(4)], scale_names, [f"noise {n + 1}" for n in range(4)])
    return _stacked(above, opened(found["curve"][0]))


def _stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    """Two pictures as wide as the first, one above the other."""
    below = below.resize((above.width, round(below.height * above.width / below.width)), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (above.width, above.height + below.height), "white")
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    return both


CONSTANT = Setting(1.0, ("RLGKeyframes", {"keyframes": "0:1", "interpolation": "step"}), name="s = 1")
FIGURES: dict[Path, Figure] = {
    WORKFLOWS / "RLG 02 - Scale sweep.jpg": card(by_prompt(scales(0, 1, 2, 3), right=1, wrong=3, lora="text")),
    WORKFLOWS / "RLG 03 - Combined generation.jpg": card(by_noise([*scales(0, 1), combined(0.5, 1)], OPEN_PROMPT, 4)),
    WORKFLOWS / "RLG 04 - Switch point sweep.jpg": card(
        by_prompt([combined(at, 1.6) for at in (0.2, 0.5, 0.8)], right=1, wrong=2)
    ),
    WORKFLOWS / "RLG 05 - Annealed guidance.jpg": card(
        by_prompt([CONSTANT, ramp(1, 1), ramp(1, 3)], right=1, wrong=1, curves=True)
    ),
    WORKFLOWS / "RLG 06 - Two rewards.jpg": card(two_rewards),
    WORKFLOWS / "RLG 07 - Branch and pick.jpg": card(branches),
    WORKFLOWS / "RLG 08 - Score and pick.jpg": card(picked),
    WORKFLOWS / "RLG 09 - Reward curve.jpg": card(reward_curve),
    WORKFLOWS / "RLG 12 - Two model files.jpg": card(by_prompt(scales(0, 1, 1.6), right=0, wrong=3, lora="text")),
    HELP / "seed_axis.jpg": seed_axis,
    HELP / "lora_axis.jpg": lora_axis,
    HELP / "branch_and_pick.jpg": branches,
    HELP / "score_and_pick.jpg": picked,
    HELP / "reward_curve.jpg": reward_curve,
}
"""File → what draws it."""
