"""An error at any call of a run leaves nothing behind: not on the models, not in memory, not in the next picture.

`--times 40` makes 40 times as many faults; memory is looked at from 10 on.
"""

from __future__ import annotations

import collections
import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import comfy.utils
import psutil
import pytest
import torch

from pairs import load_checkpoint, task, write_lora, write_model

FAULTS = 3
"""Of each kind of run."""
STEPS = 3
CANCEL = comfy.model_management.InterruptProcessingException
ERRORS = {
    "an error": RuntimeError,
    "out of memory": comfy.model_management.OOM_EXCEPTION,
    "Ctrl-C": KeyboardInterrupt,
    "Cancel": CANCEL,
}
PLACES = ("model", "adapted module", "conds", "guidance of another pack", "sampler", "progress")
QKV = "joint_blocks.1.x_block.attn.qkv"


KEPT = {"_Task"}
"""What outlives a run by intent: the tasks of the last sweeps with their cells, as many as `cell_cache.py` keeps."""


class Runs:
    """Two sets of the same weights, two LoRAs, and every way to sample with them."""

    def __init__(self, models: Path, run_node: Callable[..., tuple]) -> None:
        self.node = run_node
        path = write_model(models, "faults")
        for name, seed in (("faults", 1), ("faults-2", 2)):
            write_lora(models, name, seed=seed)
        self.base, self.other = load_checkpoint(path), load_checkpoint(path)
        self.tuned, self.second, self.tuned_other = (
            run_node("RLGLoadLora", model=model, lora_name=name, strength=1.0)[0]
            for model, name in ((self.base, "faults"), (self.base, "faults-2"), (self.other, "faults"))
        )

    def pair(self, **changes: Any) -> dict[str, Any]:
        return {"base": self.base, "tuned": self.tuned, **task(steps=STEPS), **changes}

    def sample(self, **changes: Any) -> None:
        self.node("RLGKSampler", **self.pair(**{"scale": 1.6, **changes}))

    def guided_model(self) -> None:
        (model,) = self.node("RLGModel", base=self.base, tuned=self.tuned, scale=1.6)
        self.node("KSampler", model=model, **task(steps=STEPS))

    def guider(self) -> None:
        pair = {name: self.pair()[name] for name in ("base", "tuned", "positive", "negative", "cfg")}
        sigmas = {"model": self.base, "scheduler": "normal", "steps": STEPS, "denoise": 1.0}
        self.node(
            "SamplerCustomAdvanced",
            noise=self.node("RandomNoise", noise_seed=1)[0],
            guider=self.node("RLGGuider", **pair, scale=1.6)[0],
            sampler=self.node("KSamplerSelect", sampler_name="euler")[0],
            sigmas=self.node("BasicScheduler", **sigmas)[0],
            latent_image=self.pair()["latent_image"],
        )

    def two_tuned_models(self) -> None:
        (model,) = self.node("RLGModel", base=self.base, tuned=self.tuned, scale=0.7)
        self.sample(base=model, tuned=self.second, scale=0.5)

    def scheduled(self) -> None:
        ramp = {"start_scale": 0.0, "end_scale": 2.0, "curve": "linear", "power": 2.0}
        self.sample(schedule=self.node("RLGRamp", **ramp)[0])

    def approximate(self) -> None:
        choice = {"direction_every": 2, "shared_uncond": True, "start_percent": 0.0, "end_percent": 1.0}
        self.sample(approximate=self.node("RLGApproximate", **choice)[0])

    def sweep(self) -> None:
        self.node("RLGSweep", **self.pair(scales="0, 1, 2", switch_percents="0.4"))

    def branches(self) -> None:
        self.node("RLGBranch", **self.pair(scale=1.6, branches=2, branch_percent=0.4, noise_level=0.7))

    def stock(self) -> list[torch.Tensor]:
        """What ComfyUI alone makes of the models."""
        models = (self.base, self.tuned, self.second, self.other)
        return [self.node("KSampler", model=model, **task(steps=1))[0]["samples"] for model in models]

    def state(self) -> list[Any]:
        """Everything that could be left behind on patchers and modules, by name."""
        found: list[Any] = []
        for model in (self.base, self.tuned, self.second, self.other, self.tuned_other):
            found += [
                repr(model.model_options),
                sorted(map(str, model.patches)),
                sorted(map(str, model.object_patches)),
            ]
            found += [repr(sorted(part)) for part in (model.injections, model.wrappers, model.callbacks)]
            found += [repr(sorted(model.additional_models)), sorted(model.attachments)]
        for model in (self.base, self.other):
            for name, module in model.model.named_modules():
                hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
                found.append((name, sorted(vars(module)), hooks))
        return found


RUNS: dict[str, Callable[[Runs], None]] = {
    "LoRA": Runs.sample,
    "LoRA, one batch": lambda runs: runs.sample(batching="one batch"),
    "LoRA, two passes": lambda runs: runs.sample(batching="two passes"),
    "two checkpoints": lambda runs: runs.sample(tuned=runs.tuned_other),
    "RLG Model": Runs.guided_model,
    "RLG Guider": Runs.guider,
    "two tuned models": Runs.two_tuned_models,
    "schedule": Runs.scheduled,
    "approximate": Runs.approximate,
    "sweep": Runs.sweep,
    "branches": Runs.branches,
}


@pytest.fixture(scope="module")
def runs(models_dir: Path, run_node: Callable[..., tuple]) -> Runs:
    with torch.inference_mode():
        return Runs(models_dir, run_node)


class Fault:
    """Counts the calls of a place, and raises at one of them."""

    def __init__(self, at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            if self.error is CANCEL:
                comfy.model_management.interrupt_current_processing(True)
                comfy.model_management.throw_exception_if_processing_interrupted()
            raise self.error("at a place of the test's choice")


@contextmanager
def at_place(place: str, runs: Runs, fault: Fault) -> Iterator[None]:
    """Have every call of a place come to `fault` first."""
    with pytest.MonkeyPatch.context() as patch:
        handles = []
        for model in (runs.base, runs.other):
            network = model.model.diffusion_model
            module = {"model": network, "adapted module": network.get_submodule(QKV)}.get(place)
            if module is not None:
                handles.append(module.register_forward_pre_hook(fault))
        owner, name = {
            "conds": (type(runs.base.model), "extra_conds"),
            "guidance of another pack": (comfy.samplers, "cfg_function"),
            "sampler": (comfy.k_diffusion.sampling, "to_d"),  # Euler's step, after the model's call
            "progress": (comfy.utils.ProgressBar, "update_absolute"),
        }.get(place, (None, ""))
        if owner is not None:
            original = getattr(owner, name)
            patch.setattr(owner, name, lambda *a, **k: (fault(), original(*a, **k))[1])
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _ours_alive(rlg: Any) -> collections.Counter[str]:
    """Objects of the extension's own classes, but for those that outlive a run by intent."""
    gc.collect()
    package = rlg.module("rlg_sampler").__name__
    return collections.Counter(
        f"{type(thing).__module__}.{type(thing).__qualname__}"
        for thing in gc.get_objects()
        if str(getattr(type(thing), "__module__", "")).startswith(package) and type(thing).__name__ not in KEPT
    )


@pytest.mark.parametrize("kind", RUNS)
def test_nothing_is_left_of_a_run_that_failed(runs: Runs, rlg: Any, times: int, kind: str) -> None:
    run, dice = RUNS[kind], random.Random(f"faults {kind}")
    run(runs)
    expected, state, alive = runs.stock(), runs.state(), _ours_alive(rlg)
    calls: dict[str, int] = {}
    memory: list[int] = []
    for number in range(FAULTS * times):
        place, name = dice.choice(PLACES), dice.choice(list(ERRORS))
        if place not in calls:
            counting = Fault()
            with at_place(place, runs, counting):
                run(runs)
            calls[place] = counting.calls
        assert calls[place], f"no call comes to {place}"
        fault = Fault(dice.randint(1, calls[place]), ERRORS[name])
        with at_place(place, runs, fault), pytest.raises(fault.error):
            run(runs)
        where = f"fault {number}: {name} at call {fault.at} of {calls[place]} of {place}"
        assert runs.state() == state, where
        assert not _ours_alive(rlg) - alive, where
        assert all(torch.equal(a, b) for a, b in zip(runs.stock(), expected, strict=True)), where
        memory.append(psutil.Process().memory_info().rss)
    if times >= 10:
        half = len(memory) // 2
        assert max(memory[half:]) < 1.02 * max(memory[:half]) + 2**20
