"""Renderers that need no model, for worker processes: they import them from here by name."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.host import HostSettings
from evaluation.local import LocalWorker
from evaluation.plan import Batch, Plan, load_plan
from evaluation.run import evaluate
from evaluation.worker import Job, Picture, Renderer
from files.pictures import png


def pixels(prompt: str, seed: int, folder: str) -> np.ndarray:
    """(4, 4, 3) uint8 that depend on what makes a picture, and on nothing else."""
    rng = np.random.default_rng([zlib.crc32(prompt.encode()), seed, zlib.crc32(folder.encode())])
    return rng.integers(256, size=(4, 4, 3), dtype=np.uint8)


def score(picture: np.ndarray, reward: int) -> float:
    return float(np.float32(picture.mean() / 255 + reward))


class Drawn:
    """Random pixels; the host's first argument is how many seconds a prompt takes."""

    def __init__(self, plan: Plan, host: HostSettings) -> None:
        self._plan = plan
        self._seconds = float(host.arguments[0]) if host.arguments else 0.0

    def describe(self) -> dict[str, str]:
        return {"drawn": "1"}

    def render(self, batch: Batch) -> list[Picture]:
        plan, pictures = self._plan, []
        for number, prompt in enumerate(batch.prompts, start=batch.first):
            time.sleep(self._seconds)
            for index, seed in enumerate(plan.seeds):
                for cell in range(len(plan.cells)):
                    picture = pixels(plan.pairs[batch.pair].name + prompt, seed, plan.cells[cell].folder)
                    scores = tuple(score(picture, reward) for reward in range(len(plan.rewards)))
                    pictures.append(Picture(number, index, cell, png(picture), scores, number / 8 + cell))
        return pictures


class Nothing(Drawn):
    """No picture at all, but files of a picture's size."""

    def render(self, batch: Batch) -> list[Picture]:
        return [
            Picture(number, seed, cell, bytes(bytearray(20_000)), (0.5,) * len(self._plan.rewards), None)
            for number in range(batch.first, batch.first + len(batch.prompts))
            for seed in range(len(self._plan.seeds))
            for cell in range(len(self._plan.cells))
        ]


class Refusing(Drawn):
    def describe(self) -> dict[str, str]:
        raise EvaluationError("pairs[0]: there is no such thing; give another.")


class Unlike(Drawn):
    """Another one in each process, as where two machines hold different files."""

    def describe(self) -> dict[str, str]:
        return {"process": str(os.getpid())}


class Dying(Drawn):
    def render(self, batch: Batch) -> list[Picture]:
        os._exit(9)


def job(plan: Plan, renderer: Callable[[Plan, HostSettings], Renderer] = Drawn, seconds: float = 0.0) -> Job:
    return Job(plan, HostSettings(Path("no host"), (str(seconds),)), renderer)


if __name__ == "__main__":
    # A driver of its own, to be killed: plan, seconds for a prompt, and the number of Ray workers (0: a local one).
    # By its name, as workers import it.
    import evaluation_fakes

    plan, seconds, actors = load_plan(Path(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])
    its_job = evaluation_fakes.job(plan, evaluation_fakes.Drawn, seconds)
    if actors:
        from evaluation.ray_workers import RayWorkers

        evaluate(plan, lambda: RayWorkers(its_job, "local", actors))
    else:
        evaluate(plan, lambda: LocalWorker(its_job))
