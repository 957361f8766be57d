"""Several tuned models in one mix, each with a schedule of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch

from pairs import CLOSE, Counter, load_checkpoint, relative, task, write_lora, write_model
from stock_guiders import several_models

LORAS = ("text", "colour")


@pytest.fixture(scope="module")
def checkpoint(models_dir: Path) -> Path:
    for seed, name in enumerate(LORAS):
        write_lora(models_dir, name, seed=seed + 20)
    return write_model(models_dir, "several")


@pytest.fixture(scope="module")
def others(checkpoint: Path) -> list[Any]:
    return [load_checkpoint(checkpoint) for _ in LORAS]


@pytest.fixture
def tune(run_node: Callable) -> Callable[[Any, str], Any]:
    return lambda model, lora: run_node("RLGLoadLora", model=model, lora_name=lora, strength=1.0)[0]


@pytest.fixture
def chain(run_node: Callable) -> Callable[..., Any]:
    """RLG Models one after another, each with keyframes."""

    def build(base: Any, *tuned: tuple[Any, str]) -> Any:
        for model, keyframes in tuned:
            (schedule,) = run_node("RLGKeyframes", keyframes=keyframes, interpolation="step")
            (base,) = run_node("RLGModel", base=base, tuned=model, scale=9.0, schedule=schedule)
        return base

    return build


def _of_sigma(base: Any, per_step: list[float], inputs: dict[str, Any]) -> Callable[[float], float]:
    """Scale as a function of sigma, from the scale of each step."""
    names = inputs["sampler_name"], inputs["scheduler"]
    sigmas = comfy.samplers.KSampler(base, inputs["steps"], "cpu", *names).sigmas.tolist()
    return lambda sigma: per_step[max(i for i in range(len(per_step)) if sigmas[i] >= sigma * 0.9999)]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one after another"])
@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("second_shares_weights", [True, False])
def test_each_model_follows_its_own_schedule(
    base, others, tune, chain, run_node, rlg, monkeypatch, together, sampler_name, second_shares_weights
) -> None:
    limit = float("inf") if together else -1
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", limit)
    inputs = task(steps=5, sampler_name=sampler_name, scheduler="sgm_uniform")
    second = tune(base if second_shares_weights else others[1], LORAS[1])
    model = chain(base, (tune(base, LORAS[0]), "0:0, 0.4:1.6"), (second, "0:-0.5, 0.2:0, 0.6:1"))
    ours = run_node("KSampler", model=model, **inputs)[0]["samples"]
    scales = [0, 0, 1.6, 1.6, 1.6], [-0.5, 0, 0, 1, 1]
    tuned = [
        (tune(other, lora), _of_sigma(base, of_model, inputs), None)
        for other, lora, of_model in zip(others, LORAS, scales, strict=True)
    ]
    assert relative(ours, several_models(base, tuned, **inputs)) < CLOSE


def test_order_of_the_chain_does_not_matter(base, tune, chain, run_node) -> None:
    parts = (tune(base, LORAS[0]), "0:0.7, 0.5:1.4"), (tune(base, LORAS[1]), "0:1.2, 0.5:0")
    results = [
        run_node("KSampler", model=chain(base, *order), **task())[0]["samples"] for order in (parts, parts[::-1])
    ]
    assert relative(*results) < CLOSE


def test_two_rewards_that_share_one_whole_need_no_base(base, tune, chain, run_node) -> None:
    """s_1 + s_2 = 1: the base drops out of the mix, and of the work."""
    model = chain(base, (tune(base, LORAS[0]), "0:0.5"), (tune(base, LORAS[1]), "0:0.5"))
    counter = Counter(base)
    run_node("KSampler", model=model, **task(steps=4))
    assert counter.rows == 4 * 2 * 2


@pytest.mark.parametrize("number", [1, 2])
def test_low_rank_models_and_the_base_are_one_call(base, tune, chain, run_node, rlg, monkeypatch, number) -> None:
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", float("inf"))
    model = chain(base, *[(tune(base, lora), "0:0.8") for lora in LORAS[:number]])
    counter = Counter(base)
    run_node("KSampler", model=model, **task(steps=3))
    assert (counter.calls, counter.rows) == (3, 3 * 2 * (1 + number))


def test_a_call_that_the_host_has_to_split_is_split_by_single_conds_from_then_on(
    base, tune, chain, run_node, rlg, monkeypatch
) -> None:
    """Where three rows fit, six conds are two calls; pairs of them, two rows each, stay three."""
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", float("inf"))
    model, rows = chain(base, *[(tune(base, lora), "0:0.8") for lora in LORAS]), []
    (whole,) = run_node("KSampler", model=model, **task(steps=3))
    monkeypatch.setattr(base.model, "memory_required", lambda shape, **_: 0.0 if shape[0] <= 3 else float("inf"))
    handle = base.model.diffusion_model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    (split,) = run_node("KSampler", model=model, **task(steps=3))
    handle.remove()
    assert rows == [2, 2, 2] + 2 * [3, 3]
    assert relative(split["samples"], whole["samples"]) < CLOSE


def test_only_the_models_that_a_step_needs(base, tune, chain, run_node) -> None:
    model = chain(base, (tune(base, LORAS[0]), "0:0, 0.5:1"), (tune(base, LORAS[1]), "0:0, 0.75:1.5"))
    counter = Counter(base)
    run_node("KSampler", model=model, **task(steps=8))
    # Base alone, then the first model alone, then both with the base's part −1.5.
    assert counter.rows == 2 * (4 * 1 + 2 * 1 + 2 * 3)


def test_a_model_that_is_never_used_changes_nothing(base, tune, chain, run_node) -> None:
    one = chain(base, (tune(base, LORAS[0]), "0:1.6"))
    two = chain(base, (tune(base, LORAS[0]), "0:1.6"), (tune(base, LORAS[1]), "0:0"))
    a, b = (run_node("KSampler", model=model, **task())[0]["samples"] for model in (one, two))
    assert torch.equal(a, b)
