"""One picture per cell: the same noise and sampler, another schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.utils
import torch
from tqdm.auto import tqdm

from ..guidance.guided_model import on_schedule, scale_has_effect
from ..ksampler_inputs import KSamplerInputs, Progress
from ..schedules.schedule import Schedule, check_position, check_scale, constant
from .cell_cache import KnownCells, Scales
from .labels import of_cell, schedule_of
from .number_list import number_list
from .shared_evaluations import SharedEvaluations, in_turn

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One combination of a sweep: its schedule and what a label says about it."""

    schedule: Schedule
    label: str


@dataclass(frozen=True)
class Task:
    """What cells have in common.

    Attributes:
        model: a guided MODEL; the cells' schedules are for the tuned model that was added last.
        inputs: of the stock KSampler.
        known: cells that need not be sampled; each new one is added as soon as it is done.
    """

    model: ModelPatcher
    inputs: KSamplerInputs
    known: KnownCells | None = None


def cells(scales: str, switch_percents: str, powers: Sequence[float] = ()) -> list[Cell]:
    """Every scale; where there are switch points or powers, each with every scale, row by row: scale inner.

    Args:
        scales: numbers and ranges, as `number_list` reads them.
        switch_percents: the same for positions, where combined generation starts to use the scale; may be empty.
        powers: exponents of ramps from 0 to the scale.

    Raises:
        ValueError: a text does not say that, or there are both switch points and powers.
    """
    values = [check_scale(scale, "scales") for scale in number_list(scales, "scales", "0, 1, 2")]
    if not values:
        raise ValueError("scales: there are none; write one or more numbers, such as 0, 1, 2.")
    switches = number_list(switch_percents, "switch_percents", "0.2, 0.5, 0.8")
    if switches and powers:
        raise ValueError("switch_percents: a ramp of the axis power has no switch point; empty it, or drop that axis.")
    ways = [(check_position(position, "switch_percents"), None) for position in switches]
    ways += [(None, power) for power in powers]
    return [Cell(schedule_of(scale, *way), of_cell(scale, *way)) for way in ways or [(None, None)] for scale in values]


def sweep(
    tasks: Sequence[Task],
    cells: Sequence[Cell],
    make_callback: Callable[[int], Callable],
    done: Callable[[Sequence[int], torch.Tensor], None] = lambda cells, samples: None,
) -> dict[str, Any]:
    """Sample every cell of every task; each equals a separate run of the stock sampler with its schedule.

    Args:
        tasks: with latents of one shape.
        cells: what to sample of each.
        make_callback: number of all steps → the host's callback for progress and previews.
        done: told the numbers of cells and their samples, (batch, channels, ...), as soon as these are there. Numbers
            go on from task to task.

    Returns:
        The latent with `samples` of shape (tasks · cells · batch, channels, ...), a cell's pictures next to each other.

    Raises:
        ValueError: the latent is of another kind of model.
    """
    parts = [_Part(task, cells, number * len(cells)) for number, task in enumerate(tasks)]
    missing = sum(len(part.missing) for part in parts)
    total = max(sum(part.steps * len(part.missing) for part in parts), 1)
    known = sum(len(part.results) for part in parts) - missing
    logger.info("RLG sweep: %d cells of %d steps, %d of them known", missing + known, parts[0].steps, known)
    progress = Progress(make_callback(total), total)
    with tqdm(total=missing, desc="RLG sweep", unit="cell", disable=not comfy.utils.PROGRESS_BAR_ENABLED) as bar:
        for part in parts if missing else ():
            part.tell_known(done)
        for part in parts:
            for _ in part.sample(progress, done):
                bar.update()
    return tasks[0].inputs.latent_of([samples for part in parts for samples in part.in_order()])


class _Part:
    """The cells of one task.

    Attributes:
        steps: that each takes.
        results: scales → samples, None as long as there are none.
        missing: scales → schedule of what is to be sampled.
    """

    def __init__(self, task: Task, cells: Sequence[Cell], first: int) -> None:
        self._task, self._start, self._sigmas = task, task.inputs.start(task.model), task.inputs.sigmas(task.model)
        self.steps = max(len(self._sigmas) - 1, 0)
        # Where tuned is equal to base, all cells are one.
        schedules = [cell.schedule if scale_has_effect(task.model) else constant(0.0) for cell in cells]
        self._wanted = [schedule.per_step(self.steps) for schedule in schedules]
        self.results = {scales: task.known.get(scales) if task.known else None for scales in self._wanted}
        plans = zip(self._wanted, schedules, strict=True)
        self.missing = {scales: plan for scales, plan in plans if self.results[scales] is None}
        self._first = first

    def tell_known(self, done: Callable[[Sequence[int], torch.Tensor], None]) -> None:
        for scales, samples in self.results.items():
            if samples is not None:
                done(self._numbers(scales), samples)

    def sample(self, progress: Progress, done: Callable[[Sequence[int], torch.Tensor], None]) -> Iterator[torch.Tensor]:
        """What is missing, cell by cell."""
        task, shared, missing = self._task, SharedEvaluations(), list(self.missing)
        for cell, steps_shared in in_turn(missing):
            shared.begin(steps_shared)
            scales = missing[cell]
            model = on_schedule(task.model, self.missing[scales], shared)
            # Noise is drawn again for each cell: samplers that use the global generator go on from there.
            noise, report = task.inputs.noise(self._start), progress.of_run(self.steps)
            samples = self.results[scales] = task.inputs.sample(model, self._sigmas, noise, self._start, report)
            if task.known:
                task.known.keep(scales, samples)
            done(self._numbers(scales), samples)
            yield samples

    def in_order(self) -> list[torch.Tensor]:
        """The samples of every cell."""
        return [self.results[scales] for scales in self._wanted]

    def _numbers(self, scales: Scales) -> list[int]:
        return [self._first + number for number, other in enumerate(self._wanted) if other == scales]
