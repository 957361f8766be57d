"""The prompts that the LoRAs are trained on."""

from __future__ import annotations

from demo.held_out import Asked
from demo.scenes import Prompt, prompts
from demo.tasks import TASKS

COUNT = 512
"""Different prompts that a LoRA is trained on."""

_SCENES = {(1, False): 205, (1, True): 102, (2, False): 205}
"""Of composition's prompts: number of things, and whether a place is said → how many. Where a lone thing may stand
anywhere, it is drawn twice most often, above s = 1 too; of random prompts they are one in six."""


def to_train_on(name: str, seed: int) -> list[Asked]:
    """COUNT different prompts of the part for training, for the LoRA of this name."""
    return _scenes(seed) if name == "composition" else TASKS[name].prompts(seed, COUNT, held_out=False)


def _scenes(seed: int) -> list[Prompt]:
    found, left = [], dict(_SCENES)
    for scene in prompts(seed, 6 * COUNT, held_out=False):
        kind = len(scene.things), scene.place is not None
        if left[kind]:
            left[kind] -= 1
            found.append(scene)
    return found
