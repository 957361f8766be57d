"""What a worker process does: make a renderer once, then render batches. The same code runs locally and on Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evaluation.errors import EvaluationError
from evaluation.host import HostSettings, start_host
from evaluation.plan import Batch, Plan


@dataclass(frozen=True)
class Picture:
    """One picture and what it is worth.

    Attributes:
        prompt: number of its prompt in the whole list.
        seed: index into the plan's seeds.
        cell: index into the plan's cells.
        png: the file.
        scores: one for each of the plan's rewards.
        diversity: of the pictures that differ from this one by their seed alone, and this; None with one seed.
    """

    prompt: int
    seed: int
    cell: int
    png: bytes
    scores: tuple[float, ...]
    diversity: float | None


class Renderer(Protocol):
    """Pictures and scores that depend on the plan and on the batch's prompts alone, to the last bit."""

    def describe(self) -> dict[str, Any]:
        """What the pictures depend on beside the plan, such as versions and model files; JSON."""
        ...

    def render(self, batch: Batch) -> list[Picture]:
        """Raises EvaluationError: the plan asks for what this host does not have."""
        ...


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; it is sent along with every batch, and says nothing of the prompts."""

    plan: Plan
    host: HostSettings
    make_renderer: Callable[[Plan, HostSettings], Renderer]


def comfy_renderer(plan: Plan, host: HostSettings) -> Renderer:
    """Start ComfyUI in this process; only here anything of it, or of torch, is imported.

    Raises:
        EvaluationError: it does not have what the plan asks for.
    """
    import torch

    torch.set_num_threads(plan.threads)
    extension = start_host(host)
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    from evaluation.comfy_renderer import ComfyRenderer

    return ComfyRenderer(plan, extension)


def describe(job: Job) -> dict[str, Any]:
    return _renderer(job).describe()


def render(job: Job, batch: Batch) -> list[Picture]:
    return _renderer(job).render(batch)


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first thing that is not the same in two descriptions, in words; "" where all is."""
    for name in [*other, *(one.keys() - other.keys())]:
        values = one.get(name), other.get(name)
        if values[0] != values[1]:
            if all(isinstance(value, dict) for value in values):
                return f"{name}: {difference(*values)}"
            return f"{name}: {values[0]} there, {values[1]} here"
    return ""


def agreed(descriptions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all workers say of themselves.

    Raises:
        EvaluationError: they are not alike.
    """
    first, *others = descriptions
    for other in others:
        if unlike := difference(first, other):
            raise EvaluationError(f"--ray: the workers are not alike ({unlike}); make them so, or use fewer nodes.")
    return first


@functools.lru_cache(maxsize=1)
def _renderer(job: Job) -> Renderer:
    return job.make_renderer(job.plan, job.host)
