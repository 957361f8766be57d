"""Pairs of every family of images, videos and sound that the host knows and that fits into a test."""

from __future__ import annotations

from typing import Any

import comfy.lora
import pytest
import torch
from safetensors.torch import save_file

from other_families import OTHER_FAMILIES
from pairs import CLOSE, Family, relative
from stock_guiders import two_models

_LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def _task(family: Family) -> dict[str, Any]:
    return family.task(steps=2, scheduler="sgm_uniform", latent_image={"samples": torch.zeros(2, *family.latent)})


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_fully_tuned_models(run_node, name) -> None:
    """Two checkpoints, as two stock guiders mix them."""
    family = OTHER_FAMILIES[name]
    base, tuned = family.load(), family.load(seed=1)
    networks = (model.model.diffusion_model for model in (tuned, base))
    for ours, weight in zip(*(network.parameters() for network in networks), strict=True):
        ours.data = weight + 0.05 * ours  # near its base, as a tuned model is
    inputs = _task(family)
    ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **inputs)[0]["samples"]
    assert relative(ours, two_models(base, tuned, 1.6, **inputs)) < CLOSE
    assert relative(run_node("KSampler", model=base, **inputs)[0]["samples"], ours) > 100 * CLOSE


def _random_lora(model: Any) -> dict[str, torch.Tensor]:
    """On every layer that can have one, in the names of kohya's files."""
    weights: dict[str, torch.Tensor] = {}
    known, generator = model.model.state_dict(), torch.Generator().manual_seed(0)
    modules = dict(model.model.named_modules())
    names = {key: name for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items() if isinstance(key, str)
             and name.startswith("lora_unet_")}  # fmt: skip
    for key, name in sorted(names.items()):
        if key in known and isinstance(modules[key.removesuffix(".weight")], _LAYERS):
            rows, *columns = known[key].shape
            down, up = (torch.randn(shape, generator=generator) for shape in ((2, *columns), (rows, 2)))
            weights[f"{name}.lora_down.weight"] = down / known[key][0].numel() ** 0.5
            weights[f"{name}.lora_up.weight"] = 0.3 * up.reshape(rows, 2, *[1] * (len(columns) - 1))
    return weights


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_loras_on_every_layer(run_node, models_dir, name) -> None:
    """One copy of the weights, in one batch and in two passes, as two models with the stock LoRA loader."""
    family = OTHER_FAMILIES[name]
    base, other = family.load(), family.load()
    file, weights = f"{family.config}.safetensors", _random_lora(base)
    assert len(weights) >= 16
    save_file(weights, models_dir / "loras" / file)
    tuned, report = run_node("RLGLoadLora", model=base, lora_name=file, strength=1.0)
    assert "nothing left out" in report
    (stock,) = run_node("LoraLoaderModelOnly", model=other, lora_name=file, strength_model=1.0)
    inputs = _task(family)
    expected = two_models(base, stock, 1.6, **inputs)
    for batching in ("one batch", "two passes"):
        ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, batching=batching, **inputs)[0]["samples"]
        # The host rounds what it adds to a weight once more than two small products are. CogVideoX's latents begin
        # thousands of times as large as they end, and so does what is rounded of them.
        assert relative(ours, expected) < (100 if name == "CogVideoX" else 10) * CLOSE, batching
    assert relative(run_node("KSampler", model=base, **inputs)[0]["samples"], ours) > 1000 * CLOSE
