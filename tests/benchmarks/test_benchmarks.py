"""The benchmarks where there is a GPU: what they compute stays there, and results on other devices have other names."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import training, training_reference
from benchmarks.learning import Smoothness
from benchmarks.machine import RESULTS, in_own_process
from benchmarks.models import Files
from benchmarks.session import result_name
from benchmarks.task import CFG, make_task
from demo.tiny_model import TinySD3, write_checkpoint, write_peft_adapter

META = torch.device("meta")
"""Stands for a GPU: it refuses tensors of the processor as one does."""


@pytest.fixture
def _gradients(_inference_mode: None) -> Iterator[None]:
    """Training is not done in the mode that the host runs nodes in."""
    with torch.inference_mode(False):
        yield


class _Model(torch.nn.Module):
    """What an iteration asks of a transformer with an adapter, from all that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_scale = torch.nn.Parameter(torch.ones(16, 1, 1, device=META))

    def forward(self, hidden_states, timestep, encoder_hidden_states, pooled_projections, return_dict):
        text = encoder_hidden_states.mean(dim=(1, 2)) + pooled_projections.mean(dim=1) + timestep
        return (hidden_states * self.lora_scale + text[:, None, None, None],)

    def disable_adapter(self) -> torch.no_grad:
        return torch.no_grad()


def test_an_iteration_of_the_training_reference_is_where_the_model_is(
    _gradients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_reference, "device", lambda: META)
    reference = training_reference.Reference(_Model(), make_task(latent=8, batch=2, steps=3), CFG, learning_rate=1e-3)
    reference.iterate(2, 2, lambda latents: latents[:, 0].mean(dim=(1, 2)))


@pytest.mark.slow
def test_the_trainer_can_be_measured(tmp_path: Path) -> None:
    """In a process of its own, as beside diffusers and PEFT; of a model that takes no time."""
    config = TinySD3(depth=2, dual_attention_blocks=1)
    base = write_checkpoint(tmp_path / "base.safetensors", config, with_clip=False, with_vae=False, dtype=torch.float32)
    files = Files(base, write_peft_adapter(tmp_path / "adapter", config, rank=4, alpha=8), tmp_path / "merged")
    cost = in_own_process(Path(os.environ["COMFYUI_PATH"]), True, training._measured, training.OURS, files, False, 1)
    assert len(cost.seconds) == 2 and min(cost.seconds) > 0 and cost.peak > 0


def test_smoothness_is_where_the_pictures_are() -> None:
    pictures = torch.zeros(2, 8, 8, 3, device=META)
    assert Smoothness().gradient_score(pictures, ["rough. a", "a"]).device == META


def _arguments(*modes: str, sizes: tuple[str, ...] = ()) -> argparse.Namespace:
    return argparse.Namespace(**{mode: mode in modes for mode in ("quick", "approximate", "memory")}, sizes=[*sizes])


def test_results_keep_their_names_and_those_of_a_gpu_have_others() -> None:
    published = min(RESULTS.glob("*comfyui*.json"), key=lambda path: len(path.stem))  # the default run, on a CPU
    machine = json.loads(published.read_text(encoding="utf-8"))["machine"]
    assert result_name(machine, _arguments()) == published.stem
    name = result_name(machine, _arguments(sizes=("depth 24", "latent 32")))
    assert Path(RESULTS, f"{name}.md").exists()
    on_gpu = result_name({**machine, "device": "NVIDIA H200"}, _arguments())
    assert "nvidia-h200" in on_gpu and on_gpu != published.stem
