"""Approximations leave out what they say, give what their formulas say, and nothing is approximate unasked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pairs import Counter, load_checkpoint, task
from stock_guiders import several_models, two_models

STEPS = 6
CFG = 4.5

BATCHINGS = ["one batch", "two passes"]


@pytest.fixture
def approximate(run_node: Callable) -> Callable:
    """RLGApproximate's output for some of its inputs; nothing is left out by the others."""

    def make(**inputs: Any) -> Any:
        exact = {"direction_every": 1, "shared_uncond": False, "start_percent": 0.0, "end_percent": 1.0}
        return run_node("RLGApproximate", **{**exact, **inputs})[0]

    return make


@pytest.fixture
def tuned(base: Any, tune: Callable) -> Any:
    return tune(base)


def close(result: dict, expected: torch.Tensor) -> bool:
    return bool((result["samples"] - expected).abs().max() < 1e-5 * expected.abs().max())


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("scale", [1.6, 3.0, 0.3, -0.5])
def test_the_direction_is_that_of_the_last_step_that_computed_it(
    base, other, tuned, tune, run_node, approximate, scale, batching
) -> None:
    """Against a solver of the test's own: the model of larger weight at each step, the other as far off as before."""
    inputs = task(steps=STEPS)
    (result,) = run_node(
        "RLGKSampler", base=base, tuned=tuned, scale=scale, batching=batching,
        approximate=approximate(direction_every=3), **inputs,
    )  # fmt: skip
    expected = _with_held_direction(base, tune(other), scale, every=3, inputs=inputs)
    assert close(result, expected)
    exact = two_models(base, tune(other), scale, **inputs)
    assert not close(result, exact), "the model is too tame for this test"


def _with_held_direction(base: Any, tuned: Any, scale: float, every: int, inputs: dict) -> torch.Tensor:
    x0_tuned: Callable
    step, direction = -1, None

    def mixed(x0_base: Callable) -> Callable:
        def x0(x: torch.Tensor, sigma: torch.Tensor, **args: Any) -> torch.Tensor:
            nonlocal step, direction
            step += 1
            if step % every == 0:
                of_base = x0_base(x, sigma, **args)
                direction = x0_tuned(x, sigma) - of_base
                return of_base + scale * direction
            if abs(scale) > abs(1 - scale):
                return x0_tuned(x, sigma) + (scale - 1) * direction
            return x0_base(x, sigma, **args) + scale * direction

        return x0

    def with_base(model: Callable, x: torch.Tensor, sigmas: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return comfy.k_diffusion.sampling.sample_euler(mixed(model), x, sigmas, **kwargs)

    def with_tuned(model: Callable, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any) -> torch.Tensor:
        nonlocal x0_tuned, result
        x0_tuned = lambda x, sigma: model(x, sigma, **extra_args)  # noqa: E731
        result = _sample(base, with_base, inputs)
        return x

    result = None
    _sample(tuned, with_tuned, inputs)
    return result


def _sample(model: Any, solver: Callable, inputs: dict) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(inputs["positive"], inputs["negative"])
    guider.set_cfg(inputs["cfg"])
    latent = inputs["latent_image"]["samples"]
    noise = comfy.sample.prepare_noise(latent, inputs["seed"])
    names = inputs["sampler_name"], inputs["scheduler"]
    sigmas = comfy.samplers.KSampler(model, inputs["steps"], "cpu", *names).sigmas
    sampler = comfy.samplers.KSAMPLER(solver)
    return guider.sample(noise, latent, sampler, sigmas, seed=inputs["seed"], disable_pbar=True)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize(("scale", "leads"), [(1.6, "tuned"), (0.3, "base")])
def test_shared_uncond_is_the_uncond_of_the_model_of_larger_weight(
    base, other, checkpoint, tuned, tune, run_node, approximate, scale, leads, batching
) -> None:
    """In closed form, with u that model's: x0_tuned + (s − 1)·cfg·(c_tuned − c_base), or x0_base + s·cfg·(…)."""
    inputs = task(steps=STEPS, cfg=CFG)
    (result,) = run_node(
        "RLGKSampler", base=base, tuned=tuned, scale=scale, batching=batching,
        approximate=approximate(shared_uncond=True), **inputs,
    )  # fmt: skip
    second = load_checkpoint(checkpoint)
    if leads == "tuned":
        parts = [(tune(other), 1.0, CFG), (tune(second), (scale - 1) * CFG, 1.0)]
        expected = several_models(base, parts, **{**inputs, "cfg": 1.0})
    else:
        parts = [(tune(other), scale * CFG, 1.0), (second, -scale * CFG, 1.0)]
        expected = several_models(base, parts, **inputs)
    assert close(result, expected)


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ({}, 4 * 6),
        ({"direction_every": 2}, 4 * 3 + 2 * 3),
        ({"direction_every": 3}, 4 * 2 + 2 * 4),
        ({"direction_every": 10}, 4 + 2 * 5),
        ({"shared_uncond": True}, 3 * 6),
        ({"direction_every": 3, "shared_uncond": True}, 3 * 2 + 2 * 4),
        ({"direction_every": 2, "start_percent": 0.5}, 4 * 3 + 4 + 2 + 4),
        ({"direction_every": 6, "end_percent": 0.5}, 4 + 2 * 2 + 4 * 3),
        ({"shared_uncond": True, "start_percent": 0.5}, 4 * 3 + 3 * 3),
    ],
)
@pytest.mark.parametrize("pair", ["one batch", "two passes", "two checkpoints"])
def test_evaluations_left_out(base, other, tuned, tune, run_node, approximate, what, rows, pair) -> None:
    counters = [Counter(base), Counter(other)] if pair == "two checkpoints" else [Counter(base)]
    batching = "auto" if pair == "two checkpoints" else pair
    run_node(
        "RLGKSampler", base=base, tuned=tune(other) if pair == "two checkpoints" else tuned, scale=1.6,
        batching=batching, approximate=approximate(**what), **task(steps=STEPS),
    )  # fmt: skip
    for counter in counters:
        counter.handle.remove()
    assert sum(counter.rows for counter in counters) == rows


def test_a_schedule_decides_first(base, tuned, run_node, approximate) -> None:
    """Steps at 0 or 1 cost one model anyway; the direction is computed where it is first needed."""
    (schedule,) = run_node("RLGCombinedGeneration", switch_percent=0.5, scale=2.0)
    counter = Counter(base)
    run_node(
        "RLGKSampler", base=base, tuned=tuned, scale=0.0, schedule=schedule,
        approximate=approximate(direction_every=2), **task(steps=STEPS),
    )  # fmt: skip
    counter.handle.remove()
    assert counter.rows == 2 * 3 + (4 + 2 + 4)


def test_without_cfg_there_is_no_uncond_to_share(base, tuned, run_node, approximate, caplog) -> None:
    caplog.set_level(logging.INFO)
    inputs = {"base": base, "tuned": tuned, "scale": 1.6, **task(steps=STEPS, cfg=1.0)}
    (exact,) = run_node("RLGKSampler", **inputs)
    (result,) = run_node("RLGKSampler", approximate=approximate(shared_uncond=True), **inputs)
    assert torch.equal(result["samples"], exact["samples"])
    assert "each model keeps its own uncond" in caplog.text


def test_one_model_alone_has_nobody_to_share_with(base, tuned, run_node, approximate, caplog) -> None:
    """So the log has no reason to give."""
    caplog.set_level(logging.INFO)
    run_node(
        "RLGKSampler", base=base, tuned=tuned, scale=1.0, approximate=approximate(shared_uncond=True), **task(steps=1)
    )
    assert "RLG: approximate" in caplog.text and "each model keeps its own uncond" not in caplog.text


def test_a_patch_that_changes_how_cfg_works_keeps_its_uncond(base, tuned, run_node, approximate, caplog) -> None:
    caplog.set_level(logging.INFO)
    patched = base.clone()
    patched.model_options["sampler_pre_cfg_function"] = [lambda args: args["conds_out"]]
    counter = Counter(base)
    run_node(
        "RLGKSampler", base=patched, tuned=tuned, scale=1.6, approximate=approximate(shared_uncond=True),
        **task(steps=STEPS),
    )  # fmt: skip
    counter.handle.remove()
    assert counter.rows == 4 * STEPS
    assert "each model keeps its own uncond" in caplog.text


@pytest.mark.parametrize("what", [{"direction_every": 2}, {"shared_uncond": True}])
def test_samplers_that_look_into_cfg_see_the_held_parts(base, run_node, approximate, what) -> None:
    """With a LoRA that does next to nothing any approximation is exact, unless a part of CFG is stale or left out."""
    tuned, _ = run_node("RLGLoadLora", model=base, lora_name="approximation", strength=1e-4)
    inputs = {"base": base, "tuned": tuned, "scale": 1.6, **task(steps=STEPS, sampler_name="euler_cfg_pp", cfg=1.5)}
    (exact,) = run_node("RLGKSampler", **inputs)
    (result,) = run_node("RLGKSampler", approximate=approximate(**what), **inputs)
    assert (result["samples"] - exact["samples"]).abs().max() < 1e-3 * exact["samples"].abs().max()


def test_sweeps_are_exact(base, tuned, run_node, approximate) -> None:
    """Cells share predictions, so one must not get what another has guessed."""
    sweep = {key: value for key, value in task(steps=3).items() if key != "tuned_cfg"}
    results = []
    for what in ({}, {"direction_every": 3, "shared_uncond": True}):
        (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6, approximate=approximate(**what))
        latents, _ = run_node("RLGSweep", base=model, tuned=tuned, scales="0, 0.5", switch_percents="", **sweep)
        results.append(latents["samples"])
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"direction_every": 0}, "direction_every: 0 cannot be used"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent: 0.8 lies after end_percent 0.2"),
        ({"end_percent": 1.5}, "end_percent: position 1.5"),
    ],
)
def test_wrong_inputs_are_named(approximate, inputs, message) -> None:
    with pytest.raises(ValueError, match=message):
        approximate(**inputs)


@given(scales=st.lists(st.floats(-10, 10), min_size=1, max_size=3), steps=st.integers(1, 30), every=st.integers(2, 10))
def test_each_direction_is_young_enough(rlg: SimpleNamespace, scales: list[float], steps: int, every: int) -> None:
    """Whatever the models: no direction is used `every` steps after it was computed, and none before."""
    approximation = rlg.module("rlg_sampler.guidance.approximation")
    directions, computed, latents = approximation.Directions(every), None, torch.zeros(1, 4, 8, 8)
    prediction = rlg.module("rlg_sampler.guidance.prediction").Prediction(latents)
    models = [approximation.BASE, *range(len(scales))]
    for step in range(steps):
        if directions.known_at(step, models, latents.shape):
            assert computed is not None and step - computed < every
        else:
            directions.learn(step, dict.fromkeys(models, prediction))
            assert not directions.known_at(step, models, torch.Size((1, 4, 16, 16)))  # a sampler that makes them larger
            computed = step
        weights = {-1: 1 - sum(scales), **dict(enumerate(scales))}
        assert abs(weights[approximation.lead(scales, models)]) >= max(map(abs, weights.values())) - 1e-9
