"""Where the model, the VAE, the text encoders and the reward compute on another device than they are kept on, training
does what it does on the CPU; see `second_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
import training_tasks as tasks
from safetensors.torch import load_file
from test_other_methods import METHODS, small_methods
from test_training_nodes import loaded, output, train  # noqa: F401 - fixtures

from pairs import empty_latent, relative, task
from second_device import CPU, GPU, OnGpu, second_device

Learned = dict[str, torch.Tensor]


@pytest.fixture
def make(training, models_dir: Path) -> Callable[..., Any]:
    """A trainer of a method on a device, whose LoRA is not 0."""
    path = tasks.tiny_checkpoint(models_dir, "second_training")

    def trainer(name: str, device: torch.device, checkpointing: bool | None = None) -> Any:
        model, vae = tasks.load(path)
        model.load_device = vae.device = vae.patcher.load_device = device
        images = torch.rand(2, 80, 96, 3, generator=torch.Generator().manual_seed(1))
        of = training.task.Task(
            model, vae, tasks.texts_of(training, "SD3"), tasks.Redness(), tasks.SIDE, tasks.SIDE, images
        )
        # Hardly a step: AdamW's first is the sign of each gradient, of those that are nearly 0 too.
        settings = training.trainer.Settings(rank=4, learning_rate=1e-6, batch_size=5, checkpointing=checkpointing)
        made = training.trainer.Trainer(of, small_methods(training)[name], settings)
        for number, parameter in enumerate(made.policy.parameters.values()):
            values = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data.copy_(values.to(device))
        return made

    return trainer


def _learned(trainer: Any) -> Learned:
    """What the first iteration learns."""
    next(trainer.iterate(1))
    return {name: tensor.cpu() for name, tensor in trainer._tensors().items()}


OFFLOADED = ("DDPO", "DRaFT-K", "SRPO")


@pytest.mark.parametrize(
    ("name", "offloaded"), [*((name, False) for name in METHODS), *((name, True) for name in OFFLOADED)]
)
def test_every_tensor_is_where_it_is_learned_from(make, monkeypatch, name, offloaded) -> None:
    """Offloaded weights stay on the CPU and come to the device for each product, forwards and backwards."""
    expected = _learned(make(name, CPU, offloaded))
    if offloaded:
        monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    with second_device():
        trainer = make(name, GPU, offloaded)
        found = _learned(trainer)
        assert all(isinstance(parameter, OnGpu) for parameter in trainer.policy.parameters.values())
    for part in (".up", ".down"):
        of_part = [name for name in expected if name.endswith(f"{part}.exp_avg")]
        one, other = (torch.cat([tensors[name].flatten() for name in of_part]) for tensors in (found, expected))
        assert relative(one, other) < 1e-3


def test_a_run_of_the_node_goes_on_and_guides(train, loaded, output, run_node, monkeypatch) -> None:  # noqa: F811
    """With text encoders, previews, the checkpoint and the tuned MODEL that comes out."""
    model, clip, vae = loaded
    with second_device():
        for patcher in (model, clip.patcher, vae.patcher):
            monkeypatch.setattr(patcher, "load_device", GPU)
        monkeypatch.setattr(vae, "device", GPU)
        train(name="undisturbed", iterations=2, preview_every=1)
        train(iterations=1, preview_every=1)
        tuned, _, _, report = train(iterations=2, preview_every=1)
        inputs = task(latent_image=empty_latent(size=tasks.SIDE // 8), steps=2)
        guided, plain = (
            run_node("RLGKSampler", base=model, tuned=tuned, scale=scale, **inputs)[0]["samples"]
            for scale in (2.0, 0.0)
        )
    assert "starts anew" not in report
    of_runs = [load_file(output / "loras" / name / "adapter_model.safetensors") for name in ("undisturbed", "red")]
    assert all(torch.equal(of_runs[0][name], weight) for name, weight in of_runs[1].items())
    assert relative(guided, plain) > 1e-3


def test_idle_models_leave_where_a_backward_pass_needs_their_room(make, models_dir) -> None:
    """The host makes room for sampling alone, and text encoders and rewards would stay beside it."""

    def is_loaded(model: Any) -> bool:
        return any(each.model.model is model.model for each in comfy.model_management.current_loaded_models)

    with second_device(free=2**33):
        trainer, (idle, _) = make("DDPO", GPU), tasks.load(tasks.tiny_checkpoint(models_dir, "second_idle"))
        idle.load_device = GPU
        comfy.model_management.load_models_gpu([idle])
        next(trainer.iterate(1))
        assert is_loaded(idle), "there is room for both"
        trainer._host._room = 2**34
        trainer._host.run(0, torch.Size((1, *trainer.task.latent_shape)), lambda run: None)
        assert is_loaded(trainer.task.model) and not is_loaded(idle)
