"""The demo's LoRAs: the pack's own trainer on the demo's base model, in a ComfyUI in this process."""

from __future__ import annotations

import csv
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.held_out import Asked
from demo.scenes import SIDE
from demo.tasks import TASKS
from files.replacing import replacing
from rewards.pixels import to_bytes
from rewards.protocol import WithoutGradient

Module = Callable[[str], ModuleType]
"""A module of the pack as the host loaded it, by its name."""


@dataclass(frozen=True)
class Recipe:
    """How a LoRA is trained, by DiffusionNFT.

    Attributes:
        settings: those in which it differs from the preset in `training.methods.presets`.
        trainings: of other seeds, of which the LoRA is the mean.
    """

    iterations: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 6e-4
    rank: int = 16
    batch_size: int = 16
    trainings: int = 1


class Loaded(NamedTuple):
    """MODEL, CLIP and VAE."""

    model: Any
    clip: Any
    vae: Any


class DemoReward(WithoutGradient):
    """One of the demo's rewards, as the trainer takes one.

    Args:
        name: one of TASKS.
        asked: the prompts that it may meet.
    """

    unit, range, source = "", (-math.inf, math.inf), "demo/tasks.py"

    def __init__(self, name: str, asked: Sequence[Asked]) -> None:
        self.name = name
        self._asked = {prompt.text: prompt for prompt in asked}

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """See `Reward.score`."""
        pairs, judge = zip(to_bytes(images), prompts, strict=True), TASKS[self.name].judge
        return torch.tensor([judge(picture, self._asked[text]).reward for picture, text in pairs])


def load(checkpoint: dict[str, Tensor]) -> Loaded:
    """What a loader node makes of a checkpoint."""
    import comfy.sd  # which is there once a host has been opened

    with torch.inference_mode():
        model, clip, vae, *_ = comfy.sd.load_state_dict_guess_config(checkpoint, output_vae=True, output_clip=True)
    return Loaded(model, clip, vae)


def trainer(
    module: Module, loaded: Loaded, recipe: Recipe, name: str, asked: Sequence[Asked], seed: int, checkpoint: Path
) -> Any:
    """The pack's `Trainer` for a recipe, which goes on from its checkpoint.

    Args:
        name: one of TASKS.
        asked: the prompts to train on.
    """
    prompts = module("training.policy.prompts").Prompts.encode(loaded.clip, [one.text for one in asked])
    task = module("training.task").Task(loaded.model, loaded.vae, prompts, DemoReward(name, asked), SIDE, SIDE)
    method = replace(module("training.methods.presets").DIFFUSION_NFT, **recipe.settings)
    training = module("training.trainer")
    settings = training.Settings(recipe.learning_rate, recipe.rank, seed=seed, batch_size=recipe.batch_size)
    return training.Trainer(task, method, settings, checkpoint)


def train(run: Any, iterations: int) -> None:
    """Make the iterations that are missing, and say how far it is."""
    if run.history:
        print(f"Going on after iteration {len(run.history)} of {iterations}", flush=True)
    for entry in run.iterate(iterations):
        left = (iterations - entry.number) * entry.seconds / 60
        print(
            f"iteration {entry.number}/{iterations}  reward {entry.reward:.4g}  KL {entry.kl:.3g}  "
            f"{entry.seconds:.0f} s each, {left:.0f} min left",
            flush=True,
        )


def write(runs: Sequence[Any], folder: Path) -> None:
    """The mean of the runs' averaged LoRAs as a PEFT folder in fp16, with their course in `curve.csv`.

    The mean of trainings with different seeds is worth more than they are on average, scales above 1 above all
    (measured, see the card of the composition LoRA; WARP, arXiv 2406.16768, averages policies for the same reason).
    """
    with tempfile.TemporaryDirectory() as temporary:
        paths = [run.save(Path(temporary, str(number))) for number, run in enumerate(runs)]
        weights, recipes = mean([load_file(path) for path in paths]), [_metadata(path) for path in paths]
        metadata = {name: ", ".join(dict.fromkeys(each[name] for each in recipes)) for name in recipes[0]}
        with replacing(folder / paths[0].name) as smaller:
            save_file(
                {name: tensor.half().contiguous() for name, tensor in weights.items()}, smaller, metadata=metadata
            )
        shutil.copy(paths[0].parent / "adapter_config.json", folder)
    names = ("number", "reward", "spread", "kl", "clipped")
    with replacing(folder / "curve.csv") as file, open(file, "w", newline="", encoding="utf-8") as text:
        rows = csv.writer(text)
        rows.writerow(["seed", "iteration", *names[1:]])
        for run in runs:
            seed = run.settings.seed
            rows.writerows([seed, *(f"{getattr(entry, name):.5g}" for name in names)] for entry in run.history)
    print(f"Wrote {folder}")


def mean(loras: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The mean of what LoRAs in PEFT's names and of scale 1 add to the model, as near as their rank allows."""
    if len(loras) == 1:
        return loras[0]
    found = {}
    for down in (name for name in loras[0] if ".lora_A." in name):
        up, rank = down.replace(".lora_A.", ".lora_B."), len(loras[0][down])
        added = sum(lora[up].float() @ lora[down].float() for lora in loras) / len(loras)
        u, values, vh = torch.linalg.svd(added, full_matrices=False)
        root = values[:rank].sqrt()
        found |= {down: root[:, None] * vh[:rank], up: u[:, :rank] * root}
    return found


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()
