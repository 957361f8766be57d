"""Base weights of any dtype stay as they are; deltas are added in the dtype the model computes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch

from oracle import two_models
from pairs import load_checkpoint, relative, task, write_lora, write_model


@pytest.fixture(scope="module")
def checkpoint(models_dir: Path) -> Path:
    write_lora(models_dir, "precision")
    return write_model(models_dir, "precision")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_low_precision_weights(checkpoint: Path, run_node: Callable, dtype: torch.dtype) -> None:
    """No further from the float32 result than twice what the host's own two models in this dtype are."""

    def load() -> Any:
        return comfy.sd.load_diffusion_model(str(checkpoint), model_options={"dtype": dtype})

    def tune(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="precision", strength=1.0)[0]

    exact = load_checkpoint(checkpoint)
    expected = two_models(exact, tune(load_checkpoint(checkpoint)), 1.6, **task())
    base = load()
    weight = base.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight
    assert weight.dtype == dtype
    before = weight.clone()
    ours = run_node("RLGKSampler", base=base, tuned=tune(base), scale=1.6, **task())[0]["samples"]
    error = relative(ours, expected)
    merged = relative(two_models(load(), tune(load()), 1.6, **task()), expected)
    assert torch.equal(weight.view(torch.uint8), before.view(torch.uint8))
    assert error < 2 * merged
