"""What the scale does to pictures of held-out prompts: reward and diversity, measured in a running ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from tqdm import tqdm

from demo.client import ComfyClient
from demo.graphs import Setting, sweep_prompt
from demo.held_out import Asked
from demo.picture import opened, sheet
from demo.tasks import TASKS
from evaluation.summary import aligned
from rewards.curve import Curve, curve
from rewards.intervals import student
from rewards.pixels import pixel_distances


@dataclass(frozen=True)
class Measured:
    """Pictures of one LoRA and what they are worth, for P prompts × N seeds at each of S settings."""

    lora: str
    settings: tuple[Setting, ...]
    prompts: tuple[Asked, ...]
    pictures: np.ndarray
    """(S, P, N, height, width, 3) uint8"""

    @cached_property
    def judged(self) -> np.ndarray:
        """(S, P, N, 2): reward of what the LoRA was trained for, and whether all is right."""
        judge = TASKS[self.lora].judge
        return np.array(
            [
                [[judge(picture, asked) for picture in row] for asked, row in zip(self.prompts, rows, strict=True)]
                for rows in tqdm(self.pictures, f"{self.lora}, rewards", unit="setting", dynamic_ncols=True)
            ],
            dtype=float,
        )

    @property
    def rewards(self) -> np.ndarray:
        """(S, P, N): of what the LoRA was trained for."""
        return self.judged[..., 0]

    @property
    def diversity(self) -> np.ndarray:
        """(S, P, N): of each picture, its mean distance to the others of its prompt and setting."""
        return np.array([[pixel_distances(of_prompt) for of_prompt in rows] for rows in self.pictures])

    @property
    def curve(self) -> Curve:
        """Constant scales along the axis; what has a schedule is a series of its own at the scale it ends with."""
        places, texts = [], []
        for setting in self.settings:
            for prompt in self.prompts:
                for seed in range(self.pictures.shape[2]):
                    places.append((setting.name, setting.scale, f"seed {seed}"))
                    texts.append(prompt.text)
        rewards, diversity = self.rewards.ravel().tolist(), self.diversity.ravel().tolist()
        return curve("scale", places, rewards, diversity, texts, constant=lambda series: not series)

    def table(self) -> str:
        """For a console: means with 95 % intervals over prompts; differences are of the same prompts and noise."""
        rewards = self.rewards
        columns = {}
        for name, model in (("base", Setting(0.0)), ("tuned", Setting(1.0))):
            if model in self.settings:
                columns[f"above the {name}"] = rewards - rewards[self.settings.index(model)]
        columns["reward"] = rewards
        columns["all is right"] = self.judged[..., 1]
        columns["diversity"] = self.diversity
        rows = [
            [str(setting), *(str(student(values[index].mean(axis=1))) for values in columns.values())]
            for index, setting in enumerate(self.settings)
        ]
        return aligned([["", *columns], *rows])

    def sheet(self, rows: int) -> Image.Image:
        """The first picture of the first `rows` prompts at every constant scale."""
        count = min(rows, len(self.prompts))
        shown = [index for index, setting in enumerate(self.settings) if setting.schedule is None]
        return sheet(
            [[Image.fromarray(self.pictures[index, row, 0]) for index in shown] for row in range(count)],
            [str(self.settings[index]) for index in shown],
            [prompt.text for prompt in self.prompts[:count]],
        )


def measure(
    client: ComfyClient, lora: str, settings: Sequence[Setting], prompts: Sequence[Asked], seeds: int
) -> Measured:
    """Sample every prompt with `seeds` noises, the same ones at every setting. `lora` is one of LORAS."""
    rows = []
    for index, prompt in enumerate(tqdm(prompts, f"{lora}, prompt by prompt", dynamic_ncols=True)):
        found = client.outputs(sweep_prompt(lora, settings, prompt.text, seeds, seed=1000 + index))
        pictures = [[np.array(opened(png)) for png in found[f"save{number}"]] for number in range(len(settings))]
        rows.append(np.stack(pictures))
    return Measured(lora, tuple(settings), tuple(prompts), np.stack(rows, axis=1))
