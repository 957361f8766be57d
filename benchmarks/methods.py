"""The ways to an RLG step inside ComfyUI: ours, and what our users would do without us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.k_diffusion.sampling
import comfy.samplers
import torch

from evaluation.host import Extension

from .task import CFG, SCALE, Elapsed, Method, Sample, Task

# What the tables call them.
PLAIN = "plain CFG, base alone"
OURS = "RLG, as the pair chooses"
ONE_BATCH = "RLG, one batch"
TWO_PASSES = "RLG, two passes"
OUR_CHECKPOINTS = "RLG, two checkpoints"
TWO_LOADED = "two stock guiders"
HOOKS = "core LoRA hooks"
DIFFUSERS = "diffusers + PEFT"


def plain_cfg(base: Any) -> Method:
    """The stock guider on the base model alone."""

    def sample(task: Task) -> Sample:
        return _run(_stock_guider(base, task), task)

    return Method(sample, _networks(base))


def rlg_guider(base: Any, tuned: Any, extension: Extension, batching: str = "auto", **more: Any) -> Method:
    """Our RLGGuider node on any pair of MODELs; `batching` and `more` are inputs of it."""

    def sample(task: Task) -> Sample:
        prompts = {"positive": task.conditioning(task.positive), "negative": task.conditioning(task.negative)}
        options = {"cfg": CFG, "scale": SCALE, "batching": batching, **more}
        (guider,) = extension.run_node("RLGGuider", base=base, tuned=tuned, **prompts, **options)
        return _run(guider, task)

    return Method(sample, _networks(base, tuned))


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


class _HookedGuider(comfy.samplers.CFGGuider):
    """The mix of stock parts on one MODEL: the tuned conds carry the LoRA as a hook, which swaps weights every step."""

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None, seed: int | None = None
    ) -> torch.Tensor:
        conds = [self.conds[name] for name in ("positive", "negative", "tuned positive", "tuned negative")]
        outputs = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})
        base, tuned = (uncond + CFG * (cond - uncond) for cond, uncond in (outputs[:2], outputs[2:]))
        return base + SCALE * (tuned - base)


def core_hooks(base: Any, lora: dict[str, torch.Tensor]) -> Method:
    """ComfyUI's own way to a LoRA on some conds only (Create Hook LoRA), asked for the same mix.

    Args:
        lora: the weights of its file, with alpha tensors.
    """

    def sample(task: Task) -> Sample:
        guider = _HookedGuider(base)
        hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        conds = {name: task.conditioning(getattr(task, name)) for name in ("positive", "negative")}
        hooked = {f"tuned {k}": comfy.hooks.set_hooks_for_conditioning(c, hooks) for k, c in conds.items()}
        guider.inner_set_conds({**conds, **hooked})
        return _run(guider, task)

    return Method(sample, _networks(base))


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
