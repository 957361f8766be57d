"""A LoRA is taken from models that compute on another device than they are kept on; see `second_device.py`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from test_extraction import extract, files  # noqa: F401 - fixtures

from pairs import CLOSE, load_checkpoint, relative
from second_device import CPU, GPU, second_device


@pytest.mark.parametrize("smallest", [256, 4], ids=["whole", "randomised"])
def test_extracted_weights_are_those_of_the_cpu(files, extract, monkeypatch, rlg, smallest) -> None:  # noqa: F811
    monkeypatch.setattr(rlg.module("rlg_sampler.weights.svd"), "_EXACT_BELOW", smallest)

    def taken(device: torch.device) -> dict[str, torch.Tensor]:
        models = [load_checkpoint(path) for path in (files.base, files.tuned)]
        for model in models:
            model.load_device = device
        _, (*_, file) = extract(*models, rank=2)
        weights = load_file(file)
        return {
            n: weights[n.replace("down", "up")].flatten(1) @ t.flatten(1) for n, t in weights.items() if "down" in n
        }

    expected = taken(CPU)
    with second_device():
        found = taken(GPU)
    assert max(relative(found[n], t) for n, t in expected.items()) < 10 * CLOSE
