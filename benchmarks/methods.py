"""The ways to an RLG step inside ComfyUI: ours, and what our users would do without us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch

from evaluation.host import Extension

from .task import CFG, SCALE, Elapsed, Method, Sample, Task


def plain_cfg(base: Any) -> Method:
    """The stock guider on the base model alone."""

    def sample(task: Task) -> Sample:
        return _run(_stock_guider(base, task), task)

    return Method(sample, _networks(base))


def rlg_guider(base: Any, tuned: Any, extension: Extension) -> Method:
    """Our RLGGuider node on any pair of MODELs."""

    def sample(task: Task) -> Sample:
        prompts = {"positive": task.conditioning(task.positive), "negative": task.conditioning(task.negative)}
        (guider,) = extension.run_node("RLGGuider", base=base, tuned=tuned, cfg=CFG, scale=SCALE, **prompts)
        return _run(guider, task)

    return Method(sample, _networks(base, tuned))


def forced(method: Method, one_batch: bool, extension: Extension) -> Method:
    """`method` with both branches in one model call, or one after another, whatever the pair would choose."""

    def sample(task: Task) -> Sample:
        with _attribute(
            extension.module("rlg_sampler.guided_run"),
            "_CPU_ONE_BATCH_LATENT_PIXELS",
            float("inf") if one_batch else -1,
        ):
            return method.sample(task)

    return Method(sample, method.networks)


def two_stock_guiders(base: Any, tuned: Any) -> Method:
    """Two loaded models, nothing of ours: each has a stock guider, and the solver mixes what they predict.

    The guiders are nested because each holds its model ready only while its own `sample` runs.
    """

    def sample(task: Task) -> Sample:
        inner: list[Sample] = []

        def with_tuned(
            tuned_x0: Callable, x: torch.Tensor, _: torch.Tensor, extra_args: dict, **__: Any
        ) -> torch.Tensor:
            def with_base(base_x0: Callable, x: torch.Tensor, sigmas: torch.Tensor, **arguments: Any) -> torch.Tensor:
                def mixed(x: torch.Tensor, sigma: torch.Tensor, **base_args: Any) -> torch.Tensor:
                    of_base = base_x0(x, sigma, **base_args)
                    return of_base + SCALE * (tuned_x0(x, sigma, **extra_args) - of_base)

                return _euler(mixed, x, sigmas, **arguments)

            inner.append(_run(_stock_guider(base, task), task, with_base))
            return x

        outer = _run(_stock_guider(tuned, task), task, with_tuned)
        return Sample(inner[0].latents, inner[0].steps, outer.steps.wall - inner[0].steps.wall + outer.set_up)

    return Method(sample, _networks(base, tuned))


def _networks(*models: Any) -> tuple[torch.nn.Module, ...]:
    return tuple({id(m.model.diffusion_model): m.model.diffusion_model for m in models}.values())


def _stock_guider(model: Any, task: Task) -> Any:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(task.conditioning(task.positive), task.conditioning(task.negative))
    guider.set_cfg(CFG)
    return guider


def _euler(model: Callable, x: torch.Tensor, sigmas: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, **arguments)


def _run(guider: Any, task: Task, solver: Callable = _euler) -> Sample:
    steps, run = Elapsed(), Elapsed()

    def timed(model: Callable, x: torch.Tensor, sigmas: torch.Tensor, **arguments: Any) -> torch.Tensor:
        with steps:
            return solver(model, x, sigmas, **arguments)

    with run:
        latents = guider.sample(
            task.noise,
            torch.zeros_like(task.noise),
            comfy.samplers.KSAMPLER(timed),
            task.sigmas,
            disable_pbar=True,
            seed=0,
        )
    return Sample(latents, steps, run.wall - steps.wall)


@contextmanager
def _attribute(target: object, name: str, value: Any) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)
