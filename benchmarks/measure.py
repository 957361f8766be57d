"""One cell of the benchmark: all methods on the same weights, noise and steps, compared in time and in result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache

import psutil
import torch

from evaluation.host import Extension
from rlg_sampler.weights.lora_file import read_lora

from . import diffusers_loop, methods, models
from .evaluations import counted, idle
from .methods import DIFFUSERS, HOOKS, ONE_BATCH, OUR_CHECKPOINTS, OURS, PLAIN, TWO_LOADED, TWO_PASSES
from .task import Method, Task, make_task
from .timing import Timings, interleaved

_MAX_STEPS = 10
_SECONDS_PER_RUN = 0.5
_DEAR_STEP = 2.0  # seconds
_IDLE_STEPS, _IDLE_ROUNDS = 50, 15


@dataclass(frozen=True)
class Cell:
    depth: int
    latent: int
    batch: int

    def __str__(self) -> str:
        return f"depth {self.depth}, latent {self.latent} × {self.latent}, batch {self.batch}"


@dataclass(frozen=True)
class Result:
    """What one cell gave.

    Attributes:
        evaluations: method → model evaluations per step, as "calls × rows".
        reference: the method that latents are compared with: two stock guiders, where memory allowed them.
        differences: method → largest difference of its latents from the reference's, absolute.
        magnitude: largest value of the reference's.
    """

    cell: Cell
    steps: int
    timings: Timings
    evaluations: Mapping[str, str]
    reference: str
    differences: Mapping[str, float]
    magnitude: float


_ON_ONE_COPY = {PLAIN, OURS, ONE_BATCH, TWO_PASSES}
# The others, by what they load beside the base model, and that as a part of its size.
_OTHERS = {(TWO_LOADED, OUR_CHECKPOINTS): 1.0, (HOOKS,): 0.5, (DIFFUSERS,): 1.0}
EVERYTHING = _ON_ONE_COPY.union(*_OTHERS)


def groups_that_fit(files: models.Files) -> list[set[str]]:
    """The methods to be measured side by side: all where main memory allows, else ours with what then fits."""
    # The host on a CPU, and diffusers, widen what they load to float32, which the files are in.
    one = files.base.stat().st_size
    free = psutil.virtual_memory().available / 1.1
    if (1 + sum(_OTHERS.values())) * one < free:
        return [EVERYTHING]
    return [_ON_ONE_COPY.union(names) for names, more in _OTHERS.items() if (1 + more) * one < free] or [_ON_ONE_COPY]


def load_methods(
    files: models.Files, extension: Extension, wanted: Collection[str], dtype: torch.dtype | None = None
) -> dict[str, Method]:
    """Load what the `wanted` methods need, to stay loaded; the host holds weights in `dtype`, None leaves it to it."""
    base = cache(lambda: models.load_model(files.base, dtype))
    tuned = cache(lambda: models.load_tuned(base(), files.adapter, extension))
    merged = cache(lambda: models.load_model(files.merged, dtype))
    adapter = files.adapter / "adapter_model.safetensors"
    makers: dict[str, Callable[[], Method]] = {
        PLAIN: lambda: methods.plain_cfg(base()),
        OURS: lambda: methods.rlg_guider(base(), tuned(), extension),
        ONE_BATCH: lambda: methods.rlg_guider(base(), tuned(), extension, "one batch"),
        TWO_PASSES: lambda: methods.rlg_guider(base(), tuned(), extension, "two passes"),
        OUR_CHECKPOINTS: lambda: methods.rlg_guider(base(), merged(), extension),
        TWO_LOADED: lambda: methods.two_stock_guiders(base(), merged()),
        HOOKS: lambda: methods.core_hooks(base(), read_lora(adapter, files.adapter.name).weights),
        DIFFUSERS: lambda: diffusers_loop.diffusers_peft(diffusers_loop.load_transformer(files.base, files.adapter)),
    }
    return {name: make() for name, make in makers.items() if name in wanted}


def measure_cell(
    cell: Cell, compared: Mapping[str, Method], rounds: int, budget: float, progress: Callable[[str], None]
) -> Result:
    """Time methods on one size and compare what they return.

    Args:
        rounds: how many at most; fewer where they do not fit into `budget` seconds, but never under `MIN_ROUNDS`.
        progress: called with what is going on.
    """
    start = time.perf_counter()
    progress("warming up")
    task, seconds = _sized_task(cell, compared[PLAIN])
    if seconds > _DEAR_STEP:  # what it adds to two loaded models is in the other cells
        compared = {name: method for name, method in compared.items() if name != OUR_CHECKPOINTS}
    latents, evaluations = {}, {}
    for name, method in compared.items():
        progress(f"warming up: {name}")
        sample, evaluations[name] = counted(method, task)
        latents[name] = sample.latents
    reference = next(name for name in (TWO_LOADED, DIFFUSERS, HOOKS, TWO_PASSES) if name in latents)
    expected = latents[reference]
    budget -= time.perf_counter() - start
    timings = interleaved(compared, task, rounds, budget, lambda n: progress(f"round {n} of {rounds}"))
    return Result(
        cell,
        task.steps,
        timings,
        evaluations,
        reference,
        {name: (of_method - expected).abs().max().item() for name, of_method in latents.items()},
        expected.abs().max().item(),
    )


def measure_overhead(compared: Mapping[str, Method]) -> Timings:
    """Time the code around the networks: the same runs with networks that do nothing.

    The latents are tiny, so that no thread but this one has anything to do, and CPU time means its time.
    """
    task = make_task(latent=8, batch=1, steps=_IDLE_STEPS)
    in_host = {name: method for name, method in compared.items() if name not in (DIFFUSERS, HOOKS)}
    logging.disable(logging.WARNING)  # ours notes, rightly, that a network without modules has no use for a LoRA
    try:
        with idle(in_host.values()):
            for method in in_host.values():
                method.sample(task)
            return interleaved(in_host, task, _IDLE_ROUNDS, math.inf, lambda _: None)
    finally:
        logging.disable(logging.NOTSET)


def _sized_task(cell: Cell, method: Method) -> tuple[Task, float]:
    """A task of as many steps as fill a run that can be timed, and the seconds of one of them."""
    one_step = make_task(cell.latent, cell.batch, 1)
    method.sample(one_step)
    seconds = method.sample(one_step).steps.wall
    return make_task(cell.latent, cell.batch, min(_MAX_STEPS, math.ceil(_SECONDS_PER_RUN / seconds))), seconds
