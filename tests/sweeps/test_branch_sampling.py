"""One beginning, several ends: the beginning is computed once, and each end is a stock run from there."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairs import CLOSE, Counter, load_checkpoint, picture_latent, relative, task, tiny_unet, write_lora, write_model


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Any:
    write_lora(models_dir, "branches")
    return load_checkpoint(write_model(models_dir, "branches"))


@pytest.fixture
def tuned(base: Any, run_node: Callable) -> Any:
    return run_node("RLGLoadLora", model=base, lora_name="branches", strength=1.0)[0]


@pytest.fixture
def branch(base: Any, tuned: Any, run_node: Callable) -> Callable[..., tuple]:
    def run(**inputs: Any) -> tuple:
        defaults = {"scale": 1.6, "branches": 2, "branch_percent": 0.5, "noise_level": 0.7}
        return run_node("RLGBranch", **{"base": base, "tuned": tuned, **defaults, **inputs})

    return run


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    percent=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**64 - 1),
    keyframes=st.sampled_from(["0:1.6", "0:0, 0.5:1", "0:2, 0.4:0.5"]),
    denoise=st.sampled_from([1.0, 0.5]),
)
def test_without_fresh_noise_a_branch_is_the_run(
    base, tuned, branch, run_node, percent, batch, seed, keyframes, denoise
) -> None:
    """Also with a schedule, which counts the steps of the whole run."""
    inputs = task(batch, seed=seed, steps=5, denoise=denoise, latent_image=picture_latent(batch))
    (schedule,) = run_node("RLGKeyframes", keyframes=keyframes, interpolation="step")
    ours = branch(branches=1, branch_percent=percent, noise_level=0.0, schedule=schedule, **inputs)[0]["samples"]
    whole = run_node("RLGKSampler", base=base, tuned=tuned, scale=9.0, schedule=schedule, **inputs)[0]["samples"]
    assert relative(ours, whole) < CLOSE


@pytest.mark.parametrize("kind", ["flow", "eps"])
def test_branches_continue_with_part_of_the_noise_renewed(base, run_node, rlg, kind) -> None:
    """By hand, with stock parts: x = x0 and noise; a part of the noise exchanged; on with the leftover steps."""
    steps, forked, level, seed = 6, 3, 0.6, 11
    if kind == "flow":
        model, inputs = base, task(steps=steps, seed=seed)
    else:
        model, text = tiny_unet(), [[[torch.full((1, 8, 32), value), {}]] for value in (0.3, -0.2)]
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        inputs = task(steps=steps, seed=seed, positive=text[0], negative=text[1], latent_image=latent)
    tuned = model.clone()
    key = next(k for k in model.model.state_dict() if k.endswith(("attn.qkv.weight", "to_q.weight")))
    tuned.add_patches({key: (torch.full(model.model.state_dict()[key].shape, 0.01),)}, 1.0)
    (latent, _) = run_node(
        "RLGBranch", base=model, tuned=tuned, scale=1.6, branches=2, branch_percent=0.5, noise_level=level, **inputs
    )
    (guided,) = run_node("RLGModel", base=model, tuned=tuned, scale=1.6)
    sigmas = comfy.samplers.KSampler(model, steps, "cpu", "euler", "normal").sigmas
    start = inputs["latent_image"]["samples"]
    noise = comfy.sample.prepare_noise(start, seed)
    x = model.get_model_object("model_sampling").noise_scaling(sigmas[0], noise, start.clone(), True)
    flow = kind == "flow"

    def run(x: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Euler from x on; the latents at the end and the last x0, both as the model sees them."""
        seen = {}

        def euler(x0_of: Any, _: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **__: Any) -> torch.Tensor:
            now = x
            for sigma, to in zip(sigmas, sigmas[1:], strict=False):
                seen["x0"] = x0_of(now, sigma[None], **extra_args)
                now = now + (now - seen["x0"]) / sigma * (to - sigma)
            seen["x"] = now
            return now

        guider = comfy.samplers.CFGGuider(guided)
        guider.set_conds(inputs["positive"], inputs["negative"])
        guider.set_cfg(inputs["cfg"])
        sampler = comfy.samplers.KSAMPLER(euler)
        guider.sample(torch.zeros_like(x), torch.zeros_like(x), sampler, sigmas, disable_pbar=True, seed=seed)
        return seen["x"], seen["x0"]

    x, x0 = run(x, sigmas[: forked + 1])
    sigma = sigmas[forked]
    signal = (1 - sigma) * x0 if flow else x0
    for j in (0, 1):
        fresh = comfy.sample.prepare_noise(start, seed + 2 + j)
        left = (x - signal) / sigma
        mixed = signal + sigma * (math.sqrt(1 - level**2) * left + level * fresh)
        end, _ = run(mixed, sigmas[forked:])
        assert relative(latent["samples"][j], model.model.process_latent_out(end)[0]) < 3 * CLOSE
    assert relative(latent["samples"][0], latent["samples"][1]) > 1e-2


@pytest.mark.parametrize(("percent", "forked"), [(0.0, 0), (0.5, 5), (0.51, 6), (0.9, 9)])
def test_beginning_is_evaluated_once(base, branch, percent, forked) -> None:
    counter = Counter(base)
    branch(branches=3, branch_percent=percent, **task(steps=10))
    assert counter.rows == 4 * (forked + 3 * (10 - forked))  # cond and uncond of two models


def test_late_branches_are_more_alike(branch) -> None:
    def apart(percent: float) -> float:
        samples = branch(branch_percent=percent, **task(steps=10))[0]["samples"]
        return relative(samples[0], samples[1])

    assert apart(0.0) > apart(0.5) > apart(0.9) > 0


def test_more_fresh_noise_means_more_different(branch) -> None:
    def apart(level: float) -> float:
        samples = branch(noise_level=level, **task(steps=10))[0]["samples"]
        return relative(samples[0], samples[1])

    assert apart(1.0) > apart(0.3) > apart(0.0) == 0


@pytest.mark.parametrize("noise_level", [0.0, 0.7])
def test_a_stochastic_sampler_tells_branches_apart(branch, run_node, noise_level) -> None:
    (sampler,) = run_node("RLGSamplerFlowGRPO", noise_level=0.7)
    samples = branch(branches=3, noise_level=noise_level, sampler=sampler, **task(steps=6))[0]["samples"]
    assert min(relative(samples[a], samples[b]) for a, b in ((0, 1), (1, 2), (0, 2))) > 1e-3
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize("percent", [0.0, 0.5])
def test_no_noise_is_drawn_twice(branch, run_node, rlg, monkeypatch, percent) -> None:
    """By the beginning's sampler, as fresh noise, and by the branches' samplers: it would add up, and be too strong."""
    drawn: list[torch.Tensor] = []

    def kept(noise: torch.Tensor) -> torch.Tensor:
        drawn.append(noise.clone())
        return noise

    prepare = comfy.sample.prepare_noise
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *given: kept(prepare(*given)))
    module = rlg.module("rlg_sampler.stochastic.flow_grpo_sampler")
    own = module._noise_of

    def noise_of(*given: Any) -> Callable:
        draw = own(*given)
        return lambda *sigmas: kept(draw(*sigmas))

    monkeypatch.setattr(module, "_noise_of", noise_of)
    (sampler,) = run_node("RLGSamplerFlowGRPO", noise_level=0.7)
    branch(branches=3, branch_percent=percent, sampler=sampler, **task(steps=4))
    assert len(drawn) == 1 + 3 + (3 * 4 if percent == 0 else 2 + 3 * 2)
    assert not any(torch.equal(a, b) for n, a in enumerate(drawn) for b in drawn[:n])


MASKS = {
    "soft": lambda: torch.cat([torch.ones(1, 1, 128, 64), torch.full((1, 1, 128, 64), 0.5)], dim=-1),
    "an edge between latents": lambda: (torch.arange(128) < 60).float().expand(1, 1, 128, 128).clone(),
    "a gradient": lambda: torch.linspace(0, 1, 128).expand(1, 1, 128, 128).clone(),
}


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("differential", [False, True], ids=["", "DifferentialDiffusion"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_acts_as_in_the_run(base, branch, run_node, mask, differential, sampler) -> None:
    """Whatever lies between 0 and 1 in it, and where it changes over the steps of the run."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    latent = {**picture_latent(), "noise_mask": MASKS[mask]()}
    inputs = task(steps=10, denoise=0.6, latent_image=latent, sampler_name=sampler)
    model = DifferentialDiffusion.execute(base).result[0] if differential else base
    tuned = run_node("RLGLoadLora", model=model, lora_name="branches", strength=1.0)[0]
    pair = {"base": model, "tuned": tuned, "scale": 1.6}
    ours = branch(branches=1, noise_level=0.0, **pair, **inputs)[0]["samples"]
    whole = run_node("RLGKSampler", **pair, **inputs)[0]["samples"]
    assert relative(ours, whole) < CLOSE


def test_a_sampler_that_cannot_begin_at_the_fork_is_refused(branch) -> None:
    with pytest.raises(ValueError, match="^sampler: Sampler cannot begin in the middle of a run; choose another"):
        branch(sampler=comfy.samplers.Sampler(), **task(steps=4))


@pytest.mark.parametrize("percent", [0.2, 0.8])
def test_a_part_of_one_step_is_refused_where_the_sampler_makes_none(branch, percent) -> None:
    """UniPC would hand back what it was given, with all its noise."""
    with pytest.raises(ValueError, match="^branch_percent: UniPC takes no single step"):
        branch(branch_percent=percent, **task(steps=5, sampler_name="uni_pc"))


def test_masked_parts_stay(branch) -> None:
    latent = picture_latent()
    latent["noise_mask"] = torch.zeros(1, 1, 128, 128)
    latent["noise_mask"][..., :64] = 1.0
    samples = branch(**task(latent_image=latent))[0]["samples"]
    assert relative(samples[..., 9:], latent["samples"][..., 9:].repeat(2, 1, 1, 1)) < CLOSE


@pytest.mark.usefixtures("every_step_reported")
def test_one_progress_bar_and_labels(branch, monkeypatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    (_, labels) = branch(branches=2, **task(2, steps=4, seed=5))
    assert seen == [(n, 6) for n in range(1, 7)]
    assert labels == [f"branch {b}, picture {p}, seed 5" for b in (1, 2) for p in (1, 2)]


def test_the_progress_of_an_adaptive_sampler_stays_within_its_run(branch, monkeypatch) -> None:
    """It takes as many steps as it needs."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        latent_preview, "prepare_callback", lambda _, total: lambda step, *_: seen.append((step, total))
    )
    branch(branches=2, **task(steps=6, sampler_name="dpm_adaptive"))
    steps = [step for step, _ in seen]
    assert steps == sorted(steps) and max(steps) == 8 and {total for _, total in seen} == {9}
    assert len(steps) > 9, "nothing is tested"


def test_no_step_left_for_the_branches(branch) -> None:
    with pytest.raises(ValueError, match=r"^branch_percent: at 1 none of the 5 steps is left for the branches; .*\.$"):
        branch(branch_percent=1.0, **task())
