"""Where the model, the VAE, the text encoders and the reward compute on another device than they are kept on, training
does what it does on the CPU; see `second_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
def learned(training, models_dir: Path) -> Callable[..., Learned]:
    """What the first iteration of a method learns on a device."""
    path = tasks.tiny_checkpoint(models_dir, "second_training")

    def run(name: str, device: torch.device, checkpointing: bool) -> Learned:
        model, vae = tasks.load(path)
        model.load_device = vae.device = vae.patcher.load_device = device
        images = torch.rand(2, 80, 96, 3, generator=torch.Generator().manual_seed(1))
        of = training.task.Task(
            model, vae, tasks.texts_of(training, "SD3"), tasks.Redness(), tasks.SIDE, tasks.SIDE, images
        )
        # Hardly a step: AdamW's first is the sign of each gradient, of those that are nearly 0 too.
        settings = training.trainer.Settings(rank=4, learning_rate=1e-6, batch_size=5, checkpointing=checkpointing)
        trainer = training.trainer.Trainer(of, small_methods(training)[name], settings)
        for number, parameter in enumerate(trainer.policy.parameters.values()):
            values = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data.copy_(values.to(device))
        next(trainer.iterate(1))
        found = trainer._tensors()
        assert all(isinstance(tensor, OnGpu) for n, tensor in found.items() if n.startswith("policy.")) == (
            device == GPU
        )
        return {name: tensor.cpu() for name, tensor in found.items()}

    return run


OFFLOADED = ("DDPO", "DRaFT-K", "SRPO")


@pytest.mark.parametrize(
    ("name", "offloaded"), [*((name, False) for name in METHODS), *((name, True) for name in OFFLOADED)]
)
def test_every_tensor_is_where_it_is_learned_from(learned, monkeypatch, name, offloaded) -> None:
    """Offloaded weights stay on the CPU and come to the device for each product, forwards and backwards."""
    expected = learned(name, CPU, offloaded)
    if offloaded:
        monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    with second_device():
        found = learned(name, GPU, offloaded)
        comfy.model_management.unload_all_models()
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
        comfy.model_management.unload_all_models()
    assert "starts anew" not in report
    of_runs = [load_file(output / "loras" / name / "adapter_model.safetensors") for name in ("undisturbed", "red")]
    assert all(torch.equal(of_runs[0][name], weight) for name, weight in of_runs[1].items())
    assert relative(guided, plain) > 1e-3
