"""Where the model computes on another device than it is kept on, every tensor of a step is at its place.

A GPU is where users run this; on a machine without one a device of the tests' own stands in (`second_device.py`), on
which a tensor left on the CPU is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch

from pairs import CLOSE, conds, load_checkpoint, relative, task, write_lora, write_model
from second_device import GPU, OnGpu, SecondDevice, second_device

Nodes = Callable[..., tuple]


@pytest.fixture(scope="module")
def checkpoint(models_dir: Path) -> Path:
    write_lora(models_dir, "second_device")
    write_lora(models_dir, "second_reward", seed=5)
    return write_model(models_dir, "second_device")


class Models:
    """MODELs of one checkpoint: a new set of weights for each `load`, computed on `device`."""

    def __init__(self, checkpoint: Path, run_node: Nodes, device: torch.device) -> None:
        self._checkpoint, self._run_node, self._device = checkpoint, run_node, device

    def load(self) -> Any:
        model = load_checkpoint(self._checkpoint)
        model.load_device = self._device
        return model

    def tune(self, model: Any, lora: str = "second_device") -> Any:
        return self._run_node("RLGLoadLora", model=model, lora_name=lora, strength=1.0)[0]


def _pair(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    base = models.load()
    return run("RLGKSampler", base=base, tuned=models.tune(base), **{"scale": 1.6, **task(**changes)})[0]["samples"]


def _one_batch(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    return _pair(models, run, batching="one batch", **changes)


def _two_passes(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    return _pair(models, run, batching="two passes", **changes)


def _areas_and_schedule(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    (schedule,) = run("RLGRamp", start_scale=0.0, end_scale=2.0, curve="linear", power=2.0)[:1]
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    positive = [*conds(1, mask=mask), *conds(4)]
    return _pair(models, run, schedule=schedule, positive=positive, batching="one batch", **changes)


def _own_cfg(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    return _pair(models, run, tuned_cfg=1.0, batching="one batch", **changes)


def _approximate(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    (approximate,) = run("RLGApproximate", direction_every=2, shared_uncond=True, start_percent=0.2, end_percent=1.0)
    return _pair(models, run, approximate=approximate, **changes)


def _full_difference(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    base = models.load()
    tuned, key = models.tune(base), "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    shapes = {f"{key}.{part}": base.model.state_dict()[f"{key}.{part}"].shape for part in ("weight", "bias")}
    tuned.add_patches({name: (torch.full(shape, 0.01),) for name, shape in shapes.items()})
    return run("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(**changes))[0]["samples"]


def _two_checkpoints(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    tuned = models.tune(models.load())
    return run("RLGKSampler", base=models.load(), tuned=tuned, scale=1.6, **task(**changes))[0]["samples"]


def _two_checkpoints_one_of_them_loaded(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    base, tuned = models.load(), models.tune(models.load())
    run("KSampler", model=base, **task(steps=1))
    return run("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task(**changes))[0]["samples"]


def _own_samplings_of_equal_settings_again(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    """After a run the base's is on the device, and that of the tuned MODEL, which nobody loads, is not."""
    base = models.load()
    pair = [run("ModelSamplingSD3", model=model, shift=2.0)[0] for model in (base, models.tune(base))]
    run("RLGKSampler", base=pair[0], tuned=pair[1], scale=1.6, **task(steps=1))
    return run("RLGKSampler", base=pair[0], tuned=pair[1], scale=1.6, **task(**changes))[0]["samples"]


def _two_tuned_models(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    base = models.load()
    (model,) = run("RLGModel", base=base, tuned=models.tune(base), scale=0.8)
    (model,) = run("RLGModel", base=model, tuned=models.tune(base, "second_reward"), scale=0.6)
    return run("KSampler", model=model, **task(**changes))[0]["samples"]


def _sweep(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    base = models.load()
    inputs = {"scales": "0, 1, 2", "switch_percents": "0.4, 0.8", **task(**changes)}
    return run("RLGSweep", base=base, tuned=models.tune(base), **inputs)[0]["samples"]


def _branch(models: Models, run: Nodes, **changes: Any) -> torch.Tensor:
    base = models.load()
    (sampler,) = run("RLGSamplerFlowGRPO", noise_level=0.7)
    inputs = {"branches": 2, "branch_percent": 0.4, "noise_level": 0.7, "sampler": sampler, **task(**changes)}
    return run("RLGBranch", base=base, tuned=models.tune(base), scale=1.6, **inputs)[0]["samples"]


WAYS = {
    "one batch": _one_batch,
    "two passes": _two_passes,
    "areas and a schedule": _areas_and_schedule,
    "a CFG of its own": _own_cfg,
    "approximate": _approximate,
    "a full difference": _full_difference,
    "two checkpoints": _two_checkpoints,
    "two checkpoints, one of them loaded": _two_checkpoints_one_of_them_loaded,
    "own samplings of equal settings, again": _own_samplings_of_equal_settings_again,
    "two tuned models": _two_tuned_models,
    "sweep": _sweep,
    "branch": _branch,
}


@pytest.fixture
def device() -> Iterator[SecondDevice]:
    with second_device() as device:
        yield device


def test_the_second_device_refuses_what_a_gpu_refuses(device: SecondDevice) -> None:
    there, here = torch.ones(3, device=GPU), torch.ones(3)
    assert isinstance(there, OnGpu) and (there * 2).device == GPU
    assert ((there + torch.tensor(1.0)).cpu() == 2).all()
    with pytest.raises(RuntimeError, match="and on the CPU"):
        there + here
    with pytest.raises(RuntimeError, match="and on the CPU"):
        there += here


@pytest.mark.parametrize("offloaded", [False, True], ids=["loaded", "offloaded"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_tensor_is_where_the_step_computes(checkpoint, run_node, monkeypatch, way, offloaded) -> None:
    """Offloaded weights stay on the CPU and come to the device for each product, as with --novram."""
    expected = way(Models(checkpoint, run_node, torch.device("cpu")), run_node)
    if offloaded:
        monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    with second_device():
        found = way(Models(checkpoint, run_node, GPU), run_node)
    assert relative(found, expected) < CLOSE


@pytest.mark.parametrize(
    ("way", "calls"), [("one batch", 1), ("two passes", 2), ("two checkpoints", 2), ("two tuned models", 1)]
)
def test_a_step_waits_for_the_device_only_where_the_model_itself_does(checkpoint, run_node, device, way, calls) -> None:
    """A wait keeps the processor from preparing the next products while the GPU computes."""
    models = Models(checkpoint, run_node, GPU)

    def waits(run: Callable[..., Any]) -> list[str]:
        """Of the third step: those of three steps without those of two, which load the models as well."""
        found = []
        for steps in (2, 3):
            before = len(device.waits)
            run(steps=steps)
            found.append(device.waits[before:])
        for wait in found[0]:
            found[1].remove(wait)
        return found[1]

    stock = waits(lambda steps: run_node("KSampler", model=models.load(), **task(steps=steps)))
    ours = waits(lambda steps: WAYS[way](models, run_node, steps=steps))
    assert sorted(ours) == sorted(calls * stock)
