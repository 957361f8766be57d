"""Nothing is evaluated twice, and nothing that the mix does not need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
from comfy.patcher_extension import WrappersMP

from pairs import Counter, load_checkpoint, task

STEPS = 3


@pytest.fixture(params=["shared weights", "two checkpoints"])
def counted(request: pytest.FixtureRequest, checkpoint: Path, run_node: Callable) -> Any:
    base = load_checkpoint(checkpoint)
    shared = request.param == "shared weights"
    other = base if shared else load_checkpoint(checkpoint)
    tuned, _ = run_node("RLGLoadLora", model=other, lora_name="counted_evaluations", strength=1.0)
    counters = [Counter(base)] if shared else [Counter(base), Counter(other)]
    return base, tuned, counters


@pytest.mark.parametrize(
    ("scale", "cfg", "tuned_cfg", "per_step"),
    [
        (1.6, 4.5, None, 4),
        (1.6, 1.0, None, 2),
        (1.6, 4.5, 1.0, 3),
        (1.6, 1.0, 0.0, 2),
        (1.6, 1.0, 4.5, 3),
        (0.0, 4.5, None, 2),
        (1.0, 4.5, None, 2),
        (1.0, 4.5, 1.0, 1),
        (0.0, 1.0, None, 1),
    ],
)
def test_rows_per_step(counted, run_node, scale, cfg, tuned_cfg, per_step) -> None:
    base, tuned, counters = counted
    run_node("RLGKSampler", base=base, tuned=tuned, scale=scale, **task(cfg=cfg, tuned_cfg=tuned_cfg, steps=STEPS))
    assert sum(c.rows for c in counters) == per_step * STEPS


def test_one_batch_is_one_call_per_step(checkpoint, run_node, rlg, monkeypatch) -> None:
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", float("inf"))
    base = load_checkpoint(checkpoint)
    tuned, _ = run_node("RLGLoadLora", model=base, lora_name="counted_evaluations", strength=1.0)
    counter = Counter(base)
    run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=STEPS))
    assert counter.calls == STEPS


def test_too_little_memory_for_one_batch_means_smaller_calls(checkpoint, run_node, rlg, monkeypatch) -> None:
    """The host splits a call that does not fit; rows must still find their branch."""
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", float("inf"))
    base = load_checkpoint(checkpoint)
    tuned, _ = run_node("RLGLoadLora", model=base, lora_name="counted_evaluations", strength=1.0)
    whole = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=STEPS))[0]["samples"]
    fits = [3]  # rows

    def memory_required(input_shape: list[int], **_: Any) -> float:
        return 0.0 if input_shape[0] <= fits[0] else float("inf")

    for fits[0], calls in ((3, 2), (2, 2), (1, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(base.model, "memory_required", memory_required)
            counter = Counter(base)
            split = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=STEPS))[0]["samples"]
        assert counter.calls == calls * STEPS
        assert (split - whole).abs().max() < 1e-5 * whole.abs().max()


def test_callback_once_per_step_with_the_mixed_x0(counted, run_node) -> None:
    base, tuned, _ = counted
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    guider = comfy.samplers.CFGGuider(model)
    inputs = task()
    guider.set_conds(inputs["positive"], inputs["negative"])
    guider.set_cfg(4.5)
    noise = comfy.sample.prepare_noise(inputs["latent_image"]["samples"], 1)
    seen = []
    sigmas = comfy.samplers.KSampler(model, STEPS, "cpu", "heun", "normal").sigmas
    result = guider.sample(
        noise,
        inputs["latent_image"]["samples"],
        comfy.samplers.sampler_object("heun"),
        sigmas,
        callback=lambda step, x0, x, total: seen.append((step, total, x0)),
        disable_pbar=True,
    )
    assert [s[:2] for s in seen] == [(i, STEPS) for i in range(STEPS)]
    last_x0 = base.model.process_latent_out(seen[-1][2])
    assert (last_x0 - result).abs().max() < 1e-5 * result.abs().max()  # the last step lands on the mixed x0


def test_scale_0_does_not_even_attach(counted, run_node) -> None:
    base, tuned, _ = counted
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=0.0)
    assert not model.get_wrappers(WrappersMP.OUTER_SAMPLE, "rlg")
    assert not model.get_additional_models()
