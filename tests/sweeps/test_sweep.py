"""A sweep is its separate runs, without evaluating anything twice."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.sample
import comfy.utils
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairs import CLOSE, SIZE, Counter, conds, picture_latent, relative, task

SAMPLERS = [
    *("euler", "dpmpp_2m", "heun", "uni_pc", "res_multistep", "euler_cfg_pp", "dpm_adaptive"),
    *("euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "lcm", "sa_solver"),
]


def _written(numbers: list[float]) -> str:
    return ", ".join(str(number) for number in numbers)


def _separate(
    run_node: Callable, base: Any, tuned: Any, scales: list[float], switches: list[float], **inputs: Any
) -> torch.Tensor:
    """The cells as single runs, row by row: switch outer, scale inner."""
    results = []
    for switch in switches or [None]:
        for scale in scales:
            schedule = None
            if switch is not None:
                (schedule,) = run_node("RLGCombinedGeneration", switch_percent=switch, scale=scale)
            run = run_node("RLGKSampler", base=base, tuned=tuned, scale=scale, schedule=schedule, **inputs)
            results.append(run[0]["samples"])
    return torch.cat(results)


def _sweep(run_node: Callable, base: Any, tuned: Any, scales: Any, switches: Any = (), **inputs: Any) -> tuple:
    return run_node(
        "RLGSweep", base=base, tuned=tuned, scales=_written(scales), switch_percents=_written(switches), **inputs
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scales=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.6, 3.0]), min_size=1, max_size=3),
    switches=st.lists(st.sampled_from([0.0, 0.25, 0.4, 0.75, 1.0]), max_size=2),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**64 - 1),
    sampler_name=st.sampled_from(SAMPLERS),
    cfg=st.sampled_from([1.0, 4.5]),
    tuned_cfg=st.sampled_from([None, 1.0, 2.0]),
    denoise=st.sampled_from([1.0, 0.5]),
)
def test_cells_equal_separate_runs(
    base, tune, run_node, scales, switches, batch, seed, sampler_name, cfg, tuned_cfg, denoise
) -> None:
    # This schedule stays away from the tiny last sigma of `normal`, where some solvers magnify rounding.
    inputs = task(
        batch, seed=seed, sampler_name=sampler_name, cfg=cfg, tuned_cfg=tuned_cfg, denoise=denoise, steps=4,
        scheduler="sgm_uniform", latent_image=picture_latent(batch),
    )  # fmt: skip
    tuned = tune(base)
    latent, labels = _sweep(run_node, base, tuned, scales, switches, **inputs)
    expected = _separate(run_node, base, tuned, scales, switches, **inputs)
    assert latent["samples"].shape == expected.shape
    assert len(labels) == len(expected) == len(scales) * max(len(switches), 1) * batch
    # The largest difference of any cell, relative to that cell.
    apart = [relative(a, b) for a, b in zip(latent["samples"], expected, strict=True)]
    assert max(apart) < CLOSE


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_every_kind_of_sampler(base, tune, run_node, sampler_name) -> None:
    """Stochastic ones too: every cell has the noise of the separate run, so cells differ by scale alone."""
    inputs = task(steps=5, sampler_name=sampler_name, scheduler="sgm_uniform")
    tuned = tune(base)
    ours = _sweep(run_node, base, tuned, [1.6, 0.0, 1.0], [0.4, 0.8], **inputs)[0]["samples"]
    expected = _separate(run_node, base, tuned, [1.6, 0.0, 1.0], [0.4, 0.8], **inputs)
    assert max(relative(a, b) for a, b in zip(ours, expected, strict=True)) < CLOSE


def _works_in_place(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any) -> torch.Tensor:
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x0 = model(x, sigma.expand(len(x)), **extra_args)
        x.mul_(following / sigma).add_(x0.mul_(1 - following / sigma))
    return x


def _draws_where_nobody_says(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any
) -> torch.Tensor:
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x0 = model(x, sigma.expand(len(x)), **extra_args)
        x = x0 + (x - x0) * following / sigma + 0.1 * following * torch.randn_like(x)
    return x


@pytest.mark.parametrize("sampler", [_works_in_place, _draws_where_nobody_says])
def test_samplers_of_other_packs(base, tune, run_node, monkeypatch, sampler) -> None:
    """That write into what they get, or go on with the host's random numbers from where its noise ends."""
    monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_euler", sampler)
    tuned = tune(base)
    ours = _sweep(run_node, base, tuned, [0.0, 0.5, 1.0], **task())[0]["samples"]
    expected = _separate(run_node, base, tuned, [0.0, 0.5, 1.0], [], **task())
    assert max(relative(a, b) for a, b in zip(ours, expected, strict=True)) < CLOSE


@pytest.mark.parametrize("sampler_name", ["dpm_fast", "dpm_adaptive"])
@pytest.mark.parametrize("node", ["RLGSweep", "RLGBranch"])
def test_the_host_knows_the_base_once_the_runs_are_garbage(base, tune, run_node, node, sampler_name) -> None:
    """These samplers leave cycles, which one collection takes with every MODEL that the node made for its runs."""
    inputs = {"base": base, "tuned": tune(base), **task(steps=3, sampler_name=sampler_name)}
    of_node = {
        "RLGSweep": {"scales": "0, 1.6", "switch_percents": ""},
        "RLGBranch": {"scale": 1.6, "branches": 2, "branch_percent": 0.5, "noise_level": 0.7},
    }
    gc.collect()
    gc.disable()
    try:
        run_node(node, **inputs, **of_node[node])
    finally:
        gc.enable()
    gc.collect()
    of_base = [m for m in comfy.model_management.current_loaded_models if m.real_model() is base.model]
    assert of_base and not any(loaded.is_dead() for loaded in of_base)


def test_two_checkpoints(base, other, tune, run_node) -> None:
    tuned = tune(other)
    ours = _sweep(run_node, base, tuned, [0.0, 1.6], **task())[0]["samples"]
    assert relative(ours, _separate(run_node, base, tuned, [0.0, 1.6], [], **task())) < CLOSE


def test_a_guided_base_is_swept_in_its_last_model(base, tune, run_node) -> None:
    tuned, inputs = tune(base), task()
    (guided,) = run_node("RLGModel", base=base, tuned=tuned, scale=0.3)
    ours = _sweep(run_node, guided, tuned, [0.0, 1.6], **inputs)[0]["samples"]
    assert relative(ours, _separate(run_node, guided, tuned, [0.0, 1.6], [], **inputs)) < CLOSE


@pytest.mark.parametrize("shared", [True, False], ids=["shared weights", "two checkpoints"])
@pytest.mark.parametrize(
    ("scales", "switches", "branches"),
    [
        ([1], [0.2, 0.4, 0.6, 0.8], 16 + 16 + 12 + 8 + 4),  # 56 instead of 80: the base's 16 steps once
        ([0], [], 20),
        ([1], [], 20),
        ([0, 1], [], 20 + 20),
        ([1, 1, 1], [], 20),  # duplicates cost nothing
        ([0, 0.5, 1, 2], [], 2 + 19 * (1 + 2 + 1 + 2)),  # the first step's two predictions serve all
        ([1, 2], [0.5], 10 + 10 + 1 + 9 * 2),  # at the switch the tuned x0 is common; only scale 2 asks the base there
        ([0, 5], [1.0], 20),
    ],
)
def test_evaluations_are_the_size_of_the_prefix_tree(
    base, other, tune, run_node, shared, scales, switches, branches
) -> None:
    counters = [Counter(base)] if shared else [Counter(base), Counter(other)]
    _sweep(run_node, base, tune(base if shared else other), scales, switches, **task(steps=20))
    assert sum(c.rows for c in counters) == 2 * branches  # cond and uncond


def test_no_cell_needs_more_memory_than_a_single_run(base, tune, run_node, rlg, monkeypatch) -> None:
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", float("inf"))
    largest = []

    def note(_: Any, args: tuple) -> None:
        largest.append(args[0].shape[0])

    handle = base.model.diffusion_model.register_forward_pre_hook(note)
    _sweep(run_node, base, tune(base), [0, 0.5, 1, 2, 3], [0.2, 0.5], **task(batch=2))
    handle.remove()
    assert max(largest) == 2 * 2 * 2  # pictures, cond and uncond, two branches


@pytest.mark.parametrize(("switches", "most"), [([], 2), ([0.5], 2 + 2 * 4)])
def test_latents_are_kept_as_far_as_the_next_cell_shares_them(base, tune, run_node, rlg, switches, most) -> None:
    """Of this cell and of the one before: up to the step where the scales part. Those of a video are large."""
    kept, kind = [], rlg.module("rlg_sampler.sweeps.shared_evaluations")._Evaluation

    def count(*_: Any) -> None:
        kept.append(sum(type(thing) is kind for thing in gc.get_objects()))

    handle = base.model.diffusion_model.register_forward_pre_hook(count)
    _sweep(run_node, base, tune(base), [0.5, 1.6, 3.0], switches, **task(steps=8, scheduler="sgm_uniform"))
    handle.remove()
    assert max(kept) == most


def test_500_cells(base, tune, run_node) -> None:
    scales = [round(-10 + n / 25, 2) for n in range(500)]
    inputs = task(steps=1, cfg=1.0)
    latent, labels = _sweep(run_node, base, tune(base), scales, **inputs)
    assert latent["samples"].shape[0] == 500 and len(set(labels)) == 500
    x0_base, x0_tuned = (latent["samples"][scales.index(s)] for s in (0.0, 1.0))
    assert relative(latent["samples"][-1], x0_base + scales[-1] * (x0_tuned - x0_base)) < 1e-4


def test_labels_say_scale_switch_seed_and_picture(base, tune, run_node) -> None:
    inputs = task(batch=2, steps=1, cfg=1.0, seed=3)
    (_, labels) = _sweep(run_node, base, tune(base), [0, 1.6], [0.2, 0.5], **inputs)
    assert labels == [
        f"switch {switch}, scale {scale}, picture {n}, seed 3"
        for switch in (0.2, 0.5) for scale in ("0", "1.6") for n in (1, 2)
    ]  # fmt: skip
    (_, labels) = _sweep(run_node, base, tune(base), [-0.25], **task(steps=1, cfg=1.0, seed=3))
    assert labels == ["scale -0.25, seed 3"]


def test_masks_and_batch_indices_go_along(base, tune, run_node) -> None:
    latent = picture_latent(2)
    latent["noise_mask"] = torch.zeros(2, 1, SIZE * 8, SIZE * 8)
    latent["noise_mask"][..., : SIZE * 4] = 1.0
    latent["batch_index"] = [3, 5]
    inputs, tuned = task(latent_image=latent), tune(base)
    ours = _sweep(run_node, base, tuned, [0, 2], **inputs)[0]
    assert relative(ours["samples"], _separate(run_node, base, tuned, [0, 2], [], **inputs)) < CLOSE
    assert ours["batch_index"] == [3, 5, 3, 5] and ours["noise_mask"].shape[0] == 4
    assert relative(ours["samples"][:2, ..., SIZE // 2 + 1 :], latent["samples"][..., SIZE // 2 + 1 :]) < CLOSE


@pytest.mark.parametrize("masks", [1, 3])
def test_the_masks_that_go_along_are_those_of_the_pictures(base, tune, run_node, masks) -> None:
    """Of more masks than pictures the host takes the first, for each of several runs."""
    latent = picture_latent(1)
    latent["noise_mask"] = torch.arange(masks).float().view(masks, 1, 1, 1).expand(masks, 1, 8 * SIZE, 8 * SIZE) / 4
    ours = _sweep(run_node, base, tune(base), [0, 2], **task(steps=1, latent_image=latent))[0]
    mask = ours["noise_mask"].expand(2, -1, -1, -1)
    assert torch.equal(mask, torch.zeros_like(mask))


def test_masks_of_frames_go_along_as_they_are(rlg) -> None:
    """The host reads a mask of (frames, 1, height, width) beside latents of a video."""
    latent = {"samples": torch.zeros(1, 16, 3, SIZE, SIZE), "noise_mask": torch.rand(9, 1, 8 * SIZE, 8 * SIZE)}
    inputs = rlg.module("rlg_sampler.ksampler_inputs").KSamplerInputs(**task(latent_image=latent))
    assert torch.equal(inputs.latent_of([latent["samples"]] * 2)["noise_mask"], latent["noise_mask"])


@pytest.mark.usefixtures("every_step_reported")
def test_one_progress_bar_over_all_cells(base, tune, run_node, monkeypatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **_: seen.append((value, total)), raising=True
    )
    _sweep(run_node, base, tune(base), [0, 1, 2], **task(steps=4))
    assert seen == [(n, 12) for n in range(1, 13)]


@pytest.mark.usefixtures("every_step_reported")
def test_cancel_stops_between_and_within_cells(base, tune, run_node, monkeypatch) -> None:
    steps = []

    def cancel_at_the_second_cell(value: int, *_: Any, **__: Any) -> None:
        steps.append(value)
        if value == 6:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel_at_the_second_cell)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        _sweep(run_node, base, tune(base), [0.5, 1, 2], **task(steps=4))
    assert steps[-1] == 6
    monkeypatch.undo()
    tuned = tune(base)
    again = _sweep(run_node, base, tuned, [0.5], **task())[0]["samples"]
    assert torch.equal(again, _separate(run_node, base, tuned, [0.5], [], **task()))


def test_nothing_to_denoise_gives_the_latent_for_every_cell(base, tune, run_node) -> None:
    inputs = task(denoise=0.0, latent_image=picture_latent())
    ours = _sweep(run_node, base, tune(base), [0, 1], **inputs)[0]["samples"]
    assert torch.equal(ours, picture_latent()["samples"].repeat(2, 1, 1, 1))


@pytest.mark.parametrize(
    ("scales", "switches", "message"),
    [
        ("", "", "scales: there are none"),
        (" ,\n", "0.5", "scales: there are none"),
        ("0, one", "", "scales: 'one' is not a number"),
        ("0:3", "", "scales: '0:3' is not a number"),
        ("0:3:-1", "", "scales: '0:3:-1' is not a number"),
        ("0:3:0", "", "scales: '0:3:0' is not a number"),
        ("0..3", "", "scales: '0..3' is not a number"),
        ("0..3/1", "", "scales: '0..3/1' is not a number"),
        ("0:inf:1", "", "scales: '0:inf:1' is not a number"),
        ("0:9:0.0001", "", "scales: '0:9:0.0001' makes more than 1000 values"),
        ("0:12:4", "", "scales: 12.0 cannot be used"),
        ("inf", "", "scales: inf cannot be used"),
        ("nan", "", "scales: nan cannot be used"),
        ("0, 10.5", "", "scales: 10.5 cannot be used"),
        ("1", "half", "switch_percents: 'half' is not a number"),
        ("1", "1.5", "switch_percents: position 1.5 is no part of the run"),
        ("1", "nan", "switch_percents: position nan is no part of the run"),
    ],
)
def test_bad_lists_are_one_sentence(base, tune, run_node, scales, switches, message) -> None:
    with pytest.raises(ValueError) as caught:
        run_node("RLGSweep", base=base, tuned=tune(base), scales=scales, switch_percents=switches, **task())
    sentence = str(caught.value)
    assert sentence.startswith(message) and sentence.endswith(".") and "\n" not in sentence


def test_latent_of_another_model(base, tune, run_node) -> None:
    with pytest.raises(ValueError, match="^latent_image: it has 4 channels"):
        _sweep(run_node, base, tune(base), [1], **task(latent_image={"samples": torch.ones(1, 4, 16, 16)}))


@pytest.mark.skipif(
    "downscale_ratio_spacial" not in inspect.signature(comfy.sample.fix_empty_latent_channels).parameters,
    reason="this host does not note for which model an empty latent was made",
)
def test_an_empty_latent_of_another_model_gets_the_size_that_ksampler_gives_it(base, tune, run_node) -> None:
    inputs = task(latent_image={"samples": torch.zeros(1, 16, SIZE // 2, SIZE // 2), "downscale_ratio_spacial": 16})
    tuned = tune(base)
    ours = _sweep(run_node, base, tuned, [0, 2], **inputs)[0]
    assert relative(ours["samples"], _separate(run_node, base, tuned, [0, 2], [], **inputs)) < CLOSE
    assert ours["samples"].shape[-1] == SIZE and ours.keys() == {"samples"}


def test_grid_takes_what_the_sweep_gives(base, tune, run_node) -> None:
    latent, labels = _sweep(run_node, base, tune(base), [0, 1, 2], [0.2, 0.5], **task(steps=1, positive=conds(1)))
    images = latent["samples"][:, :3].movedim(1, -1).sigmoid()
    as_host = run_node("RLGGrid", images=[images], labels=labels, columns=[0], title=["sweep"])[0]
    assert as_host.shape[0] == 1 and as_host.shape[3] == 3
    assert torch.equal(as_host, run_node("RLGGrid", images=images, labels=labels, columns=0, title="sweep")[0])


@pytest.mark.parametrize("node", ["RLGSweep", "RLGBranch"])
def test_latents_of_picture_and_sound_are_refused(base, tune, run_node, node) -> None:
    """As the host has them for some models of video."""
    nested = {"samples": SimpleNamespace(is_nested=True)}
    own = {"RLGSweep": {"scales": "1", "switch_percents": ""},
           "RLGBranch": {"scale": 1.0, "branches": 2, "branch_percent": 0.5, "noise_level": 0.7}}[node]  # fmt: skip
    with pytest.raises(ValueError, match=r"^latent_image: picture and sound together cannot be compared; .*\.$"):
        run_node(node, base=base, tuned=tune(base), **task(steps=2) | {"latent_image": nested}, **own)


def test_cells_of_a_model_that_draws_random_numbers_are_separate_runs(base, tune, run_node) -> None:
    """As Tome's and HyperTile's patches do: in another run a cell gets others, so nothing is computed once for two."""
    model = base.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"] + 0.1 * torch.randn_like(args["input"]), args["timestep"], **args["c"])
    )
    scales = [0.0, 1.6, 3.0]
    cells = _sweep(run_node, model, tune(model), scales, **task())[0]["samples"]
    assert torch.equal(cells, _separate(run_node, model, tune(model), scales, [], **task()))
