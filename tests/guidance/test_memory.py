"""Deltas are part of the host's memory count, and models that are loaded in part give the same pictures."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch

from pairs import CLOSE, Counter, as_single_file, load_checkpoint, matrices, relative, task, write_lora, write_model
from stock_guiders import two_models

QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv"


@pytest.fixture(scope="module")
def checkpoint(models_dir: Path) -> Path:
    write_lora(models_dir, "memory")
    as_single_file(write_lora(models_dir, "common", seed=5), models_dir / "loras" / "common.safetensors")
    return write_model(models_dir, "memory")


@pytest.fixture
def tune(run_node: Callable) -> Callable[..., Any]:
    return lambda model, strength=1.0: run_node("RLGLoadLora", model=model, lora_name="memory", strength=strength)[0]


def _bytes(deltas: Any) -> int:
    tensors = [
        tensor for delta in deltas.modules.values() for tensor in (*matrices(delta.low_rank), delta.dense, delta.bias)
    ]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("kind", ["low rank", "with a full difference and a bias"])
def test_room_is_made_for_just_what_deltas_take(base, tune, rlg, monkeypatch, kind) -> None:
    """On a device with memory of its own; here the CPU passes for one."""
    tuned = tune(base)
    if kind != "low rank":
        weights = base.model.state_dict()
        tuned.add_patches(
            {f"{QKV}.{part}": (torch.ones_like(weights[f"{QKV}.{part}"]),) for part in ("weight", "bias")}
        )
    asked = []
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(comfy.model_management, "free_memory", lambda size, device: asked.append((size, device)))
    module = rlg.module("rlg_sampler.guidance.branch")
    pair = rlg.module("rlg_sampler.weights.pair").ModelPair.from_models(base, tuned)
    branch = module.TunedBranch(None, module.TunedModel(pair, None), base, {}, None)
    branch.make_deltas(torch.device("cpu"))
    assert asked == [(_bytes(branch.deltas), torch.device("cpu"))]
    assert asked[0][0] > 0


def test_a_lora_of_the_models_dtype_is_copied_by_half(base, tune, rlg) -> None:
    """On a CPU one half, the scaled `down` matrices, is new memory; the other is that of the LoRA's file."""
    tuned = tune(base)
    module = rlg.module("rlg_sampler.guidance.branch")
    pair = rlg.module("rlg_sampler.weights.pair").ModelPair.from_models(base, tuned)
    branch = module.TunedBranch(None, module.TunedModel(pair, None), base, {}, None)
    branch.make_deltas(torch.device("cpu"))
    of_file = {t.data_ptr() for patches in tuned.patches.values() for p in patches for t in p[1].weights[:2]}
    held = [t for delta in branch.deltas.modules.values() for t in matrices(delta.low_rank)]
    new = sum(t.nbytes for t in held if t.data_ptr() not in of_file)
    assert new == _bytes(branch.deltas) / 2 > 0


def test_deltas_take_their_place_before_the_host_loads_weights(base, tune, run_node, rlg, monkeypatch) -> None:
    """The host loads as many weights as fit into what it finds free, so what comes later has no place."""
    order = []
    deltas = rlg.module("rlg_sampler.weights.deltas").Deltas
    build, load = deltas.from_changes, comfy.model_management.load_models_gpu
    monkeypatch.setattr(deltas, "from_changes", lambda *a: order.append("deltas") or build(*a))
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda *a, **k: order.append("weights") or load(*a, **k)
    )
    run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **task(steps=1))
    assert order == ["deltas", "weights"]


@pytest.mark.parametrize("common", [False, True], ids=["LoRA on the tuned model", "and one on both"])
@pytest.mark.parametrize("part", [0.0, 0.5], ids=["no weight loaded", "half of them"])
def test_model_loaded_in_part(checkpoint, tune, run_node, monkeypatch, part, common) -> None:
    """As with --lowvram and --novram: weights come to the device as they are used, patched on the way."""
    base, other = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    if common:
        base, other = (
            run_node("LoraLoaderModelOnly", model=m, lora_name="common.safetensors", strength_model=1.0)[0]
            for m in (base, other)
        )
    expected = two_models(base, tune(other), 1.6, **task(steps=3))
    load = comfy.model_management.LoadedModel.model_load

    def load_in_part(self: Any, *_: Any, **kwargs: Any) -> Any:
        return load(self, max(part * self.model.model_size(), 0.1), **kwargs)

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_load", load_in_part)
    kept = []
    base.model.diffusion_model.register_forward_pre_hook(lambda *_: kept.append(base.model.model_lowvram))
    for batching in ("one batch", "two passes"):
        comfy.model_management.unload_all_models()
        ours = run_node(
            "RLGKSampler", base=base, tuned=tune(base), scale=1.6, batching=batching, **task(steps=3)
        )[0]["samples"]  # fmt: skip
        assert relative(ours, expected) < CLOSE
    assert kept and all(kept)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize(
    ("batching", "size", "calls"),
    [("auto", 16, 1), ("auto", 48, 2), ("one batch", 48, 1), ("two passes", 16, 2)],
)
def test_how_branches_are_evaluated_can_be_chosen(base, tune, run_node, batching, size, calls) -> None:
    """ "auto" on a CPU: together while that is faster (benchmarks/), apart for larger pictures."""
    inputs = task(steps=2, latent_image={"samples": torch.zeros(1, 16, size, size)})
    counter = Counter(base)
    try:
        run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, batching=batching, **inputs)
    finally:
        counter.handle.remove()
    assert (counter.calls, counter.rows) == (calls * 2, 4 * 2)


def test_every_node_has_the_choice_and_the_same_picture(base, tune, run_node) -> None:
    tuned, inputs, calls = tune(base), task(steps=2), []
    for batching in ("one batch", "two passes"):
        counter = Counter(base)
        (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6, batching=batching)
        by_model = run_node("KSampler", model=model, **inputs)[0]["samples"]
        prompts = {k: inputs[k] for k in ("positive", "negative", "cfg")}
        (guider,) = run_node("RLGGuider", base=base, tuned=tuned, scale=1.6, batching=batching, **prompts)
        by_guider = run_node(
            "SamplerCustomAdvanced",
            noise=run_node("RandomNoise", noise_seed=inputs["seed"])[0],
            guider=guider,
            sampler=run_node("KSamplerSelect", sampler_name="euler")[0],
            sigmas=run_node("BasicScheduler", model=base, scheduler="normal", steps=2, denoise=1.0)[0],
            latent_image=inputs["latent_image"],
        )[0]["samples"]
        counter.handle.remove()
        assert torch.equal(by_model, by_guider)
        calls.append((counter.calls, by_model))
    (together, one), (apart, two) = calls
    assert (together, apart) == (4, 8)
    assert relative(one, two) < CLOSE


def _add_patches(model: Any, other: Any) -> None:
    """Those of another MODEL, in place: of the same modules, and of low rank as those that are there."""
    for key, patches in other.patches.items():
        for strength, weights, _, offset, _ in patches:
            model.add_patches({key if offset is None else (key, offset): weights}, strength)


def test_matrices_are_made_once_for_a_tuned_model(base, tune, run_node, rlg, monkeypatch) -> None:
    """They stay in main memory while the MODEL lives, and are those of its patches at any time."""
    module = rlg.module("rlg_sampler.weights.deltas")
    kept, made, make = module._kept, [], module.low_rank_change
    monkeypatch.setattr(module, "low_rank_change", lambda *a: made.append(1) or make(*a))
    gc.collect()
    before = len(kept)

    def sample(tuned: Any) -> torch.Tensor:
        return run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(steps=1))[0]["samples"]

    tuned = tune(base)
    first, count = sample(tuned), len(made)
    assert torch.equal(sample(tuned), first)
    assert len(made) == count > 0
    (second, _) = run_node("RLGLoadLora", model=base, lora_name="common", strength=1.0)
    _add_patches(tuned, second)
    changed = sample(tuned)
    assert relative(changed, first) > 100 * CLOSE
    anew = tune(base)
    _add_patches(anew, second)
    assert torch.equal(sample(anew), changed)
    del tuned, anew, second
    gc.collect()
    assert len(kept) == before
