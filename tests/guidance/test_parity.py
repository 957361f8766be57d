"""The nodes give what diffusers and PEFT give from the same files and noise, each side on its own schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch

import diffusers_rlg
from demo.tiny_model import TinySD3
from pairs import conds, empty_latent, load_checkpoint, write_lora, write_model

CLOSE = 1e-4  # absolute, on latents whose largest values are around 16
MAGNITUDE = (5.0, 32.0)
SEED, STEPS, CFG = 7, 10, 4.5

RANK = 8
ADAPTERS = {
    "alpha 2r": {"alpha": 16.0},  # Flow-GRPO's
    "alpha 1r": {"alpha": 8.0},
    "alpha 0.5r": {"alpha": 4.0},
    "rslora": {"alpha": 4.0, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"to_q": 4, r"transformer_blocks\.1\.attn\.(to_k|add_v_proj)": 16},
        "alpha_pattern": {"attn.to_out.0": 4.0, "transformer_blocks.0.attn.to_v": 32.0},
    },
}


@dataclass(frozen=True)
class Sides:
    """One checkpoint and one adapter, as the host and as the reference have them."""

    base: Any
    lora_name: str
    model: diffusers_rlg.PeftModel


@pytest.fixture(scope="module")
def sides(models_dir: Path) -> Callable[[str, bool], Sides]:
    """Both sides of an adapter, with dual attention or in the SD3.0 layout; written and read once."""

    @cache
    def checkpoint(dual: bool) -> tuple[TinySD3, Path, Any]:
        config = TinySD3(dual_attention_blocks=int(dual))
        path = write_model(models_dir, f"parity-{dual}", config)
        return config, path, load_checkpoint(path)

    @cache
    def both(adapter: str, dual: bool) -> Sides:
        config, path, base = checkpoint(dual)
        folder = write_lora(models_dir, f"parity-{dual}-{adapter}", config, rank=RANK, **ADAPTERS[adapter])
        return Sides(base, folder.name, diffusers_rlg.load(path, folder, config))

    return both


def texts(batch: int) -> dict[str, list]:
    """CONDITIONINGs with a text of its own for each picture."""
    return {"positive": conds(1, batch), "negative": conds(2, batch)}


def as_text(conditioning: list) -> diffusers_rlg.Text:
    [[tokens, extra]] = conditioning
    return diffusers_rlg.Text(tokens, extra["pooled_output"])


def by_reference(both: Sides, scale: float, batch: int) -> torch.Tensor:
    """The reference's latents, (batch, 16, side, side), from the noise that the host's samplers start from."""
    noise = comfy.sample.prepare_noise(empty_latent(batch)["samples"], SEED)
    text = {name: as_text(conditioning) for name, conditioning in texts(batch).items()}
    latents = diffusers_rlg.sample(both.model, noise, **text, steps=STEPS, cfg=CFG, scale=scale)
    assert MAGNITUDE[0] < latents.abs().max() < MAGNITUDE[1]
    return latents


def difference(latent: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    """Largest absolute difference of a node's LATENT."""
    return (latent["samples"] - expected).abs().max().item()


@pytest.fixture
def tuned(run_node: Callable[..., tuple]) -> Callable[..., Any]:
    """The host's base with the adapter, as our loader puts it there."""

    def tune(both: Sides, strength: float = 1.0) -> Any:
        return run_node("RLGLoadLora", model=both.base, lora_name=both.lora_name, strength=strength)[0]

    return tune


@pytest.fixture
def sampler_is_off_by(run_node: Callable[..., tuple], tuned: Callable[..., Any]) -> Callable[..., float]:
    """Largest difference of RLGKSampler from the reference."""

    def compare(both: Sides, scale: float, batch: int, strength: float = 1.0) -> float:
        (latent,) = run_node(
            "RLGKSampler",
            base=both.base,
            tuned=tuned(both, strength),
            seed=SEED,
            steps=STEPS,
            cfg=CFG,
            sampler_name="euler",
            scheduler="normal",
            latent_image=empty_latent(batch),
            denoise=1.0,
            scale=scale,
            **texts(batch),
        )
        return difference(latent, by_reference(both, scale, batch))

    return compare


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.6, 3.0], ids="scale {:g}".format)
@pytest.mark.parametrize("batch", [1, 3], ids="batch {}".format)
@pytest.mark.parametrize("dual", [True, False], ids=["dual attention", "SD3.0 layout"])
def test_sampler_equals_the_reference(sides, sampler_is_off_by, dual, batch, scale):
    assert sampler_is_off_by(sides("alpha 2r", dual=dual), scale, batch) < CLOSE


@pytest.mark.parametrize("adapter", ["alpha 1r", "alpha 0.5r", "rslora", "patterns"])
def test_every_way_to_write_alpha(sides, sampler_is_off_by, adapter):
    """How it is read does not depend on the scale, the batch or the layout."""
    assert sampler_is_off_by(sides(adapter, dual=True), scale=1.6, batch=3) < CLOSE


def test_guider_on_the_reference_sigmas(sides, tuned, run_node):
    """The models alone: on one list of sigmas, a difference of the schedules can neither add nor cancel."""
    both = sides("alpha 2r", dual=True)
    guider = run_node("RLGGuider", base=both.base, tuned=tuned(both), cfg=CFG, scale=1.6, **texts(3))[0]
    latent, _ = run_node(
        "SamplerCustomAdvanced",
        noise=run_node("RandomNoise", noise_seed=SEED)[0],
        guider=guider,
        sampler=run_node("KSamplerSelect", sampler_name="euler")[0],
        sigmas=diffusers_rlg.scheduler(STEPS).sigmas,
        latent_image=empty_latent(3),
    )
    assert difference(latent, by_reference(both, scale=1.6, batch=3)) < CLOSE


@pytest.mark.parametrize("steps", [STEPS, 28, 40])
def test_normal_schedule_is_the_reference_schedule(sides, steps):
    """The schedules alone. They are equal up to rounding: the host shifts in float32, diffusers in float64."""
    model_sampling = sides("alpha 2r", dual=True).base.get_model_object("model_sampling")
    ours = comfy.samplers.calculate_sigmas(model_sampling, "normal", steps)
    assert (ours - diffusers_rlg.scheduler(steps).sigmas).abs().max() <= 2 * torch.finfo(torch.float32).eps


def test_a_small_error_of_strength_is_seen(sides, sampler_is_off_by):
    """The tolerance is no loose one: an adapter that is one percent too weak fails by far."""
    assert sampler_is_off_by(sides("alpha 2r", dual=True), scale=1.6, batch=1, strength=0.99) > 100 * CLOSE
