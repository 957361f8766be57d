"""After a guided run the models are as they were, also after an error or Cancel."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import PatcherInjection

from pairs import CLOSE, load_checkpoint, relative, task


@pytest.fixture(params=["shared weights", "two checkpoints"])
def pair(request: pytest.FixtureRequest, checkpoint: Path, run_node: Callable) -> tuple[Any, Any]:
    base = load_checkpoint(checkpoint)
    other = base if request.param == "shared weights" else load_checkpoint(checkpoint)
    return base, run_node("RLGLoadLora", model=other, lora_name="restore", strength=1.0)[0]


@pytest.fixture(params=[True, False], ids=["one batch", "two passes"], autouse=True)
def _path(request: pytest.FixtureRequest, rlg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = float("inf") if request.param else -1
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", limit)


def _cancel(_: Any) -> None:
    comfy.model_management.interrupt_current_processing(True)


def _fail(_: Any) -> None:
    raise RuntimeError("a patch of another pack failed")


@pytest.mark.parametrize("ending", [None, _cancel, _fail], ids=["finished", "cancelled", "failed"])
def test_stock_sampling_is_bit_identical_afterwards(pair, run_node, ending) -> None:
    base, tuned = pair

    def stock() -> list[torch.Tensor]:
        return [run_node("KSampler", model=m, **task())[0]["samples"] for m in (base, tuned)]

    def hooks() -> list[str]:
        return [n for n, m in base.model.named_modules() if m._forward_hooks or "forward" in m.__dict__]

    before, options, patches = stock(), repr(base.model_options), dict(base.patches)
    calls = []

    def interfere(args: dict) -> torch.Tensor:
        calls.append(hooks())
        if ending is not None and len(calls) == 3:
            ending(args)
        return args["denoised"]

    disturbed = base.clone()
    disturbed.set_model_sampler_post_cfg_function(interfere)
    expected = {None: (), _cancel: comfy.model_management.InterruptProcessingException, _fail: RuntimeError}[ending]
    if ending is None:
        run_node("RLGKSampler", base=disturbed, tuned=tuned, scale=1.6, **task())
    else:
        with pytest.raises(expected):
            run_node("RLGKSampler", base=disturbed, tuned=tuned, scale=1.6, **task())
    assert len(calls) >= 3
    assert any(calls) == base.is_clone(tuned)  # while it runs, modules that share weights are adapted
    assert hooks() == []
    assert repr(base.model_options) == options and dict(base.patches) == patches
    assert all(torch.equal(a, b) for a, b in zip(before, stock(), strict=True))


def test_guided_model_can_run_again_after_cancel(pair, run_node) -> None:
    base, tuned = pair
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    first = run_node("KSampler", model=model, **task())[0]["samples"]
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("KSampler", model=model, **task())
    assert torch.equal(run_node("KSampler", model=model, **task())[0]["samples"], first)


def test_node_output_holds_no_device_memory_between_runs(pair, run_node, rlg) -> None:
    """The host caches node outputs: tensors kept there would stay for good. What a run puts on a device are deltas."""
    deltas = rlg.module("rlg_sampler.weights.deltas").Deltas

    def alive() -> set[int]:
        gc.collect()
        return {id(thing) for thing in gc.get_objects() if type(thing) is deltas}

    base, tuned = pair
    before = alive()
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    during = []
    model.set_model_sampler_post_cfg_function(lambda args: during.append(len(alive())) or args["denoised"])
    run_node("KSampler", model=model, **task(steps=1))
    assert during[0] - len(before) == base.is_clone(tuned)
    assert alive() == before
    assert "predict_noise" not in model.wrappers and "sampler_sample" not in model.wrappers


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_nothing_on_a_device_waits_for_garbage_to_be_collected(base, run_node, rlg, sampler) -> None:
    """These samplers leave a cycle that holds the run: with a matrix of each changed layer it would fill the memory."""
    low_rank = rlg.module("rlg_sampler.weights.deltas").ModuleDelta
    (tuned, _) = run_node("RLGLoadLora", model=base, lora_name="restore", strength=1.0)

    def alive() -> int:
        return sum(type(thing) is low_rank for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=3, sampler_name=sampler))
        assert alive() == before
    finally:
        gc.enable()


class Injected:
    """Replaces a module's forward as core's bypass LoRA does: going out, it puts the module's own one back."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.original = module, module.forward

    def into(self, _: Any = None) -> None:
        self.original = self.module.forward
        self.module.forward = lambda *args, **kwargs: 1.5 * self.original(*args, **kwargs)

    def out(self, _: Any = None) -> None:
        self.module.forward = self.original


def test_an_injection_that_goes_and_comes_in_a_run_leaves_the_tuned_model_tuned(base, run_node) -> None:
    """As with a control net that loads a model of its own, before the host loads the base again."""
    module = base.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    injected = Injected(module)
    injection = PatcherInjection(inject=injected.into, eject=injected.out)
    with_injection = base.clone()
    with_injection.set_injections("bypass", [injection])
    (tuned, _) = run_node("RLGLoadLora", model=with_injection, lora_name="restore", strength=1.0)
    (model,) = run_node("RLGModel", base=with_injection, tuned=tuned, scale=1.6)
    (expected,) = run_node("KSampler", model=model, **task(steps=4))

    def again(args: dict[str, Any]) -> torch.Tensor:
        injected.out()
        injected.into()
        return args["denoised"]

    reloaded = model.clone()
    reloaded.set_model_sampler_post_cfg_function(again)
    (ours,) = run_node("KSampler", model=reloaded, **task(steps=4))
    assert relative(ours["samples"], expected["samples"]) < CLOSE
    reloaded.eject_model()
    assert module.forward.__func__ is type(module).forward
