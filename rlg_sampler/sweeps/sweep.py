"""One picture per cell: the same noise and sampler, another schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.utils
import torch
from tqdm.auto import tqdm

from ..guidance.guided_model import on_schedule, scale_has_effect
from ..ksampler_inputs import KSamplerInputs
from ..schedules.schedule import Schedule, check_position, check_scale, combined_generation, constant
from .cell_cache import KnownCells
from .labels import of_cell
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


def cells(scales: str, switch_percents: str) -> list[Cell]:
    """Every scale; where there are switch points, every (switch, scale), row by row: switch outer, scale inner.

    Args:
        scales: numbers and ranges, as `number_list` reads them.
        switch_percents: the same for positions, where combined generation starts to use the scale; may be empty.

    Raises:
        ValueError: a text does not say that.
    """
    values = [check_scale(scale, "scales") for scale in number_list(scales, "scales", "0, 1, 2")]
    if not values:
        raise ValueError("scales: there are none; write one or more numbers, such as 0, 1, 2.")
    switches = number_list(switch_percents, "switch_percents", "0.2, 0.5, 0.8")
    if not switches:
        return [Cell(constant(scale), of_cell(scale)) for scale in values]
    return [
        Cell(combined_generation(switch, scale), of_cell(scale, switch))
        for switch in (check_position(position, "switch_percents") for position in switches)
        for scale in values
    ]


def sweep(
    model: ModelPatcher,
    cells: Sequence[Cell],
    inputs: KSamplerInputs,
    make_callback: Callable[[int], Callable],
    known: KnownCells | None = None,
    done: Callable[[Sequence[int], torch.Tensor], None] = lambda cells, samples: None,
) -> dict[str, Any]:
    """Sample every cell; each equals a separate run of the stock sampler with its schedule.

    Args:
        model: a guided MODEL; the cells' schedules are for the tuned model that was added last.
        cells: what to sample.
        inputs: of the stock KSampler.
        make_callback: number of all steps → the host's callback for progress and previews.
        known: cells that need not be sampled; each new one is added as soon as it is done.
        done: told the numbers of cells and their samples, (batch, channels, ...), as soon as these are there.

    Returns:
        The latent with `samples` of shape (cells · batch, channels, ...), a cell's pictures next to each other.

    Raises:
        ValueError: the latent is of another kind of model.
    """
    start, sigmas = inputs.start(model), inputs.sigmas(model)
    steps = max(len(sigmas) - 1, 0)
    # Where tuned is equal to base, all cells are one.
    schedules = [cell.schedule if scale_has_effect(model) else constant(0.0) for cell in cells]
    wanted = [schedule.per_step(steps) for schedule in schedules]
    results = {scales: known.get(scales) if known else None for scales in wanted}
    missing = {scales: plan for scales, plan in zip(wanted, schedules, strict=True) if results[scales] is None}
    total = max(steps * len(missing), 1)
    logger.info("RLG sweep: %d cells of %d steps, %d of them known", len(results), steps, len(results) - len(missing))
    callback = make_callback(total)
    numbers = {scales: [i for i, other in enumerate(wanted) if other == scales] for scales in results}
    for scales in results if missing else ():
        if scales not in missing:
            done(numbers[scales], results[scales])
    shared = SharedEvaluations()
    turns = in_turn(list(missing))
    for turn_number, turn in enumerate(
        tqdm(turns, desc="RLG sweep", unit="cell", disable=not comfy.utils.PROGRESS_BAR_ENABLED)
    ):

        def report(step: int, x0: torch.Tensor, x: torch.Tensor, _: int, before: int = turn_number * steps) -> None:
            callback(before + min(step, steps - 1), x0, x, total)

        shared.begin(turn)
        scales = list(missing)[turn.cell]
        model_of_cell = on_schedule(model, missing[scales], shared)
        # Noise is drawn again for each cell: samplers that use the global generator go on from there.
        results[scales] = inputs.sample(model_of_cell, sigmas, inputs.noise(start), start, report)
        if known:
            known.keep(scales, results[scales])
        done(numbers[scales], results[scales])
    return inputs.latent_of([results[scales] for scales in wanted])
