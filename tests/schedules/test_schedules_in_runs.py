"""A schedule in a run: the scale of each step, the steps of combined generation, what is evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from pairs import CLOSE, Counter, conds, picture_latent, relative, task, tiny_unet
from stock_guiders import two_models


@pytest.fixture
def sample(run_node: Callable) -> Callable[..., torch.Tensor]:
    return lambda **inputs: run_node("RLGKSampler", scale=9.0, **inputs)[0]["samples"]


@pytest.fixture
def per_step(base: Any, other: Any, tune: Callable, run_node: Callable) -> Callable[..., list[float]]:
    """The scale that a run really used at each step, solved from the x0 of the two models and of the mix."""
    x0: dict[str, torch.Tensor] = {}
    spied = {}
    for name, model in (("base", base), ("tuned", other)):
        spied[name] = model.clone()

        def note(args: dict, name: str = name) -> torch.Tensor:
            x0[name] = args["denoised"]
            return args["denoised"]

        spied[name].set_model_sampler_post_cfg_function(note)

    def measure(schedule: Any, steps: int) -> list[float]:
        found = []

        def solve(step: int, mixed: torch.Tensor, *_: Any) -> None:
            if len(x0) == 1:  # one model alone
                found.append({"base": 0.0, "tuned": 1.0}[next(iter(x0))])
                assert torch.equal(mixed, next(iter(x0.values())))
            else:
                direction = x0["tuned"] - x0["base"]
                found.append(((mixed - x0["base"]) * direction).sum().item() / (direction * direction).sum().item())
            x0.clear()

        (guider,) = run_node(
            "RLGGuider", base=spied["base"], tuned=tune(spied["tuned"]), positive=conds(1), negative=conds(2), cfg=4.5,
            scale=9.0, schedule=schedule,
        )  # fmt: skip
        latent = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 1)
        sigmas = comfy.samplers.KSampler(base, steps, "cpu", "euler", "normal").sigmas
        euler = comfy.samplers.sampler_object("euler")
        guider.sample(noise, latent, euler, sigmas, callback=solve, disable_pbar=True)
        return found

    return measure


@pytest.mark.parametrize("power", [1, 3])
def test_annealed_guidance_is_recorded_as_its_formula(per_step, run_node, power) -> None:
    """ImageReFL's AIG: s_i = (i/T)^p."""
    (schedule,) = run_node("RLGRamp", start_scale=0.0, end_scale=1.0, curve="power", power=power)
    assert per_step(schedule, 10) == pytest.approx([(i / 10) ** power for i in range(10)], abs=1e-4)


def test_combined_generation_switches_at_32_of_40(per_step, run_node) -> None:
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=0.8, scale=1.0)
    assert per_step(schedule, 40) == [0.0] * 32 + [1.0] * 8


def test_rlg_in_an_interval_and_keyframes(per_step, run_node) -> None:
    (schedule,) = run_node("RLGScale", scale=2.5, start_percent=0.3, end_percent=0.6, outside=1.0)
    assert per_step(schedule, 10) == pytest.approx([1.0] * 3 + [2.5] * 3 + [1.0] * 4, abs=1e-4)
    (schedule,) = run_node("RLGKeyframes", keyframes="0:-1, 1:1", interpolation="linear")
    assert per_step(schedule, 4) == pytest.approx([-1.0, -0.5, 0.0, 0.5], abs=1e-4)


def _two_ksamplers(run_node: Callable, base: Any, tuned: Any, switch: int, inputs: dict[str, Any]) -> torch.Tensor:
    """Combined generation as it is built of stock nodes: leftover noise handed on, none added."""
    shared = {k: v for k, v in inputs.items() if k not in ("seed", "denoise", "latent_image")}
    if switch in (0, inputs["steps"]):
        model = tuned if switch == 0 else base
        return run_node("KSampler", model=model, **inputs)[0]["samples"]
    (half_way,) = run_node(
        "KSamplerAdvanced", model=base, noise_seed=inputs["seed"], add_noise="enable", start_at_step=0,
        end_at_step=switch, return_with_leftover_noise="enable", latent_image=inputs["latent_image"], **shared,
    )  # fmt: skip
    return run_node(
        "KSamplerAdvanced", model=tuned, noise_seed=inputs["seed"], add_noise="disable", start_at_step=switch,
        end_at_step=10000, return_with_leftover_noise="disable", latent_image=half_way, **shared,
    )[0]["samples"]  # fmt: skip


@pytest.mark.parametrize("switch", range(11))
def test_combined_generation_equals_two_ksamplers(base, tune, sample, run_node, switch) -> None:
    tuned, inputs = tune(base), task(steps=10, latent_image=picture_latent())
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=switch / 10, scale=1.0)
    ours = sample(base=base, tuned=tuned, schedule=schedule, **inputs)
    assert relative(ours, _two_ksamplers(run_node, base, tuned, switch, inputs)) < CLOSE


@pytest.fixture(scope="module")
def eps_pair() -> tuple[Any, Any]:
    base = tiny_unet()
    tuned = base.clone()
    generator = torch.Generator().manual_seed(5)
    keys = [k for k in base.model.state_dict() if k.endswith(("to_q.weight", "to_v.weight", "to_out.0.weight"))]
    shapes = {key: base.model.state_dict()[key].shape for key in keys}
    tuned.add_patches({k: (torch.randn(shape, generator=generator) * 0.2,) for k, shape in shapes.items()}, 1.0)
    return base, tuned


def _eps_task(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    text = [[[torch.randn(1, 8, 32, generator=generator), {}]] for _ in range(2)]
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    return task(positive=text[0], negative=text[1], latent_image=latent, **changes)


@pytest.mark.parametrize("switch", range(11))
def test_combined_generation_of_an_eps_model(eps_pair, sample, run_node, switch) -> None:
    """ImageReFL's models are SD1.5 and SDXL."""
    base, tuned = eps_pair
    inputs = _eps_task(steps=10)
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=switch / 10, scale=1.0)
    ours = sample(base=base, tuned=tuned, schedule=schedule, **inputs)
    assert relative(ours, _two_ksamplers(run_node, base, tuned, switch, inputs)) < CLOSE
    if switch == 5:
        for alone in (0, 10):
            assert relative(ours, _two_ksamplers(run_node, base, tuned, alone, inputs)) > 1e-3


@pytest.mark.parametrize("switch", range(1, 10))
def test_multistep_solvers_keep_their_history_over_the_switch(base, other, tune, sample, run_node, switch) -> None:
    """dpmpp_2m extrapolates from the last x0. In one run that is the base's at the switch, as in any loop with one
    solver for both models; this is what RLG does. Two KSamplers start anew there, with a first-order step. See the
    next test for which is right."""
    inputs = task(steps=10, sampler_name="dpmpp_2m", scheduler="sgm_uniform", latent_image=picture_latent())
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=switch / 10, scale=1.0)
    ours = sample(base=base, tuned=tune(base), schedule=schedule, **inputs)
    sigmas = comfy.samplers.KSampler(base, 10, "cpu", "dpmpp_2m", "sgm_uniform").sigmas
    expected = two_models(base, tune(other), lambda sigma: float(sigma <= sigmas[switch]), **inputs)
    assert relative(ours, expected) < CLOSE
    if switch == 5:
        assert relative(ours, _two_ksamplers(run_node, base, tune(base), switch, inputs)) > 10 * CLOSE


def test_history_over_the_switch_fades_with_more_steps(base, tune, sample, run_node) -> None:
    """Both ways discretise one equation. Starting anew is the consistent way at a jump (an extrapolation across it is
    no derivative), yet the difference is one step's, so it shrinks with the step."""
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=0.5, scale=1.0)
    apart = []
    for steps in (8, 32):
        inputs = task(steps=steps, sampler_name="dpmpp_2m", scheduler="sgm_uniform", latent_image=picture_latent())
        ours = sample(base=base, tuned=tune(base), schedule=schedule, **inputs)
        apart.append(relative(ours, _two_ksamplers(run_node, base, tune(base), steps // 2, inputs)))
    assert apart[1] < apart[0] / 2


@pytest.mark.parametrize("sampler_name", ["heun", "dpm_2", "dpmpp_sde", "uni_pc", "dpm_adaptive"])
def test_samplers_that_evaluate_more_than_once_a_step(base, tune, sample, run_node, sampler_name) -> None:
    """Base to one half, nothing beyond: the tuned model is asked at no sigma above that of the switch."""
    seen: list[float] = []
    spied = base.clone()

    def note(args: dict) -> torch.Tensor:
        seen.append(float(args["sigma"][0]))
        return args["denoised"]

    tuned = tune(base)
    tuned.set_model_sampler_post_cfg_function(note)
    inputs = task(steps=6, sampler_name=sampler_name, scheduler="sgm_uniform")
    sigmas = comfy.samplers.KSampler(base, 6, "cpu", sampler_name, "sgm_uniform").sigmas
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=0.5, scale=1.0)
    sample(base=spied, tuned=tuned, schedule=schedule, **inputs)
    assert seen and max(seen) <= sigmas[3] * (1 + 1e-4)
    if sampler_name != "dpm_adaptive":  # which chooses its own sigmas
        assert max(seen) == pytest.approx(float(sigmas[3]), rel=1e-4)


@pytest.mark.parametrize("denoise", [1.0, 0.4])
def test_progress_counts_the_steps_that_run(base, other, tune, sample, run_node, denoise) -> None:
    inputs = task(steps=8, denoise=denoise, latent_image=picture_latent())
    (schedule,) = run_node("RLGKeyframes", keyframes="0:2, 0.25:0, 0.75:1", interpolation="step")
    ours = sample(base=base, tuned=tune(base), schedule=schedule, **inputs)
    sigmas = comfy.samplers.KSampler(base, 8, "cpu", "euler", "normal", denoise).sigmas
    by_step = {round(float(sigma), 5): s for sigma, s in zip(sigmas, [2, 2, 0, 0, 0, 0, 1, 1], strict=False)}
    expected = two_models(base, tune(other), lambda sigma: by_step[round(sigma, 5)], **inputs)
    assert relative(ours, expected) < CLOSE


def test_three_nodes_take_a_schedule(base, tune, sample, run_node) -> None:
    tuned, inputs = tune(base), task(steps=6)
    (schedule,) = run_node("RLGRamp", start_scale=0.0, end_scale=2.0, curve="cosine", power=2.0)
    by_sampler = sample(base=base, tuned=tuned, schedule=schedule, **inputs)
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=9.0, schedule=schedule)
    assert torch.equal(run_node("KSampler", model=model, **inputs)[0]["samples"], by_sampler)


@pytest.mark.parametrize("shared", [True, False], ids=["shared weights", "two checkpoints"])
@pytest.mark.parametrize(
    ("keyframes", "cfg", "tuned_cfg", "rows"),
    [
        ("0:0, 0.8:1", 4.5, None, 2 * 20),  # combined generation: one model at a time
        ("0:0, 0.8:1", 4.5, 1.0, 2 * 16 + 4),
        ("0:0, 0.8:1", 1.0, None, 20),
        ("0:1, 0.2:3, 0.6:1", 4.5, None, 2 * 20 + 2 * 8),  # an interval: both models within it
        ("0:1", 4.5, None, 2 * 20),
        ("0:0", 4.5, None, 2 * 20),
    ],
)
def test_nothing_is_evaluated_that_a_step_does_not_need(
    base, other, tune, sample, run_node, shared, keyframes, cfg, tuned_cfg, rows
) -> None:
    counters = [Counter(base)] if shared else [Counter(base), Counter(other)]
    (schedule,) = run_node("RLGKeyframes", keyframes=keyframes, interpolation="step")
    inputs = task(steps=20, cfg=cfg, tuned_cfg=tuned_cfg)
    sample(base=base, tuned=tune(base if shared else other), schedule=schedule, **inputs)
    assert sum(c.rows for c in counters) == rows


def test_a_run_without_a_step_is_none(base, tune, run_node) -> None:
    """Stock guiders allow a single sigma; it leaves the latents as they are."""
    (model,) = run_node("RLGModel", base=base, tuned=tune(base), scale=1.6)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conds(1), conds(2))
    latent = picture_latent()["samples"]
    euler = comfy.samplers.sampler_object("euler")
    result = guider.sample(torch.zeros_like(latent), latent, euler, torch.tensor([0.5]), disable_pbar=True)
    assert relative(result, latent) < CLOSE


def test_a_range_that_no_step_falls_into_is_said_in_the_log(base, tune, sample, run_node, caplog) -> None:
    (schedule,) = run_node("RLGScale", scale=2.0, start_percent=0.51, end_percent=0.55, outside=1.0)
    with caplog.at_level("INFO"):
        sample(base=base, tuned=tune(base), schedule=schedule, **task(steps=5))
    assert "none of the 5 steps takes scale 2" in caplog.text
    assert f"RLG: scale {schedule}" in caplog.text


def test_schedule_nodes_show_a_picture_and_say_what_they_are(rlg) -> None:
    shown = rlg.nodes["RLGKeyframes"].execute(keyframes="0:0, 0.5:2", interpolation="linear")
    (image,) = shown.ui.as_dict()["images"]
    assert image["type"] == "temp"
    file = Path(folder_paths.get_temp_directory()) / image["subfolder"] / image["filename"]
    colours = np.unique(np.asarray(Image.open(file)).reshape(-1, 3), axis=0)
    assert len(colours) > 10


def test_a_schedule_is_made_without_matplotlib_too(rlg, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = rlg.nodes["RLGKeyframes"].execute(keyframes="0:0, 0.5:2", interpolation="linear")
    assert output.result[0] == rlg.module("rlg_sampler.schedules.schedule").keyframes("0:0, 0.5:2", "linear")
    assert output.ui is None and "pip install matplotlib" in caplog.text
