"""Axes of a sweep: every combination is the picture that a run of its own gives, and its label says which it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.utils
import pytest
import torch

from pairs import Counter, task, write_lora
from without_host import labels, schedule


def _run(run_node: Callable, base: Any, tuned: Any, axis: Any, scales: str = "0, 2", **inputs: Any) -> tuple:
    latent, names = run_node("RLGSweep", base=base, tuned=tuned, scales=scales, switch_percents="", axis=axis, **inputs)
    return latent["samples"], names


def _axis(run_node: Callable, vary: str, values: str, outer: tuple = ()) -> tuple:
    return run_node("RLGAxis", vary=vary, values=values, axis=outer)[0]


@pytest.fixture
def alone(run_node: Callable) -> Callable[..., torch.Tensor]:
    """One picture of a node that knows nothing of sweeps."""

    def run(base: Any, tuned: Any, **inputs: Any) -> torch.Tensor:
        return run_node("RLGKSampler", base=base, tuned=tuned, **inputs)[0]["samples"]

    return run


def _equal(ours: torch.Tensor, theirs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-5, atol=1e-5)
    assert len({tuple(each.flatten().tolist()) for each in theirs}) > 1, "nothing is compared"


def test_seeds_and_cfgs_are_separate_runs_in_the_order_of_the_labels(base, tune, run_node, alone) -> None:
    tuned, inputs = tune(base), task(batch=2, steps=3)
    axis = _axis(run_node, "cfg", "1, 3", _axis(run_node, "seed", "5:6:1"))
    samples, names = _run(run_node, base, tuned, axis, **inputs)
    expected, said = [], []
    for seed in (5, 6):
        for cfg in (1.0, 3.0):
            for scale in (0.0, 2.0):
                expected.append(alone(base, tuned, scale=scale, **inputs | {"seed": seed, "cfg": cfg}))
                said += [f"cfg {cfg:g}, scale {scale:g}, picture {n}, seed {seed}" for n in (1, 2)]
    assert names == said
    _equal(samples, expected)


def test_tuned_cfg_and_power_are_separate_runs(base, tune, run_node, alone) -> None:
    """Powers stand next to the scales, wherever their node is; 0 is RLG KSampler's tuned_cfg of 0: that of cfg."""
    tuned, inputs = tune(base), task(steps=4)
    axis = _axis(run_node, "tuned_cfg", "0, 1", _axis(run_node, "power", "1, 3"))
    samples, names = _run(run_node, base, tuned, axis, scales="1, 2", **inputs)
    expected = []
    for own in (0.0, 1.0):
        for power in (1.0, 3.0):
            for scale in (1.0, 2.0):
                (ramp,) = run_node("RLGRamp", start_scale=0.0, end_scale=scale, curve="power", power=power)
                expected.append(alone(base, tuned, scale=9.0, schedule=ramp, tuned_cfg=own, **inputs))
    assert names[:3] == [
        f"tuned_cfg 0, power {power}, scale {scale}, seed 7" for power, scale in ((1, 1), (1, 2), (3, 1))
    ]
    _equal(samples, expected)


@pytest.fixture
def loras(rlg: SimpleNamespace, models_dir: Path) -> list[str]:
    """Two that differ; the second is a folder of that name with a comma in it."""
    names = ["axis_one", "axis, two"]
    for seed, name in enumerate(names):
        write_lora(models_dir, name, seed=seed)
    return names


def test_loras_take_the_place_of_tuned(base, tune, run_node, alone, loras) -> None:
    inputs = task(steps=3)
    (axis,) = run_node("RLGLoraAxis", model=base, lora_1=loras[0], lora_2=loras[1], lora_3="none", lora_4=loras[0])
    samples, names = _run(run_node, base, tune(base), axis, scales="1.5", **inputs)
    assert names == ["lora axis_one, scale 1.5, seed 7", "lora axis two, scale 1.5, seed 7"]
    models = [run_node("RLGLoadLora", model=base, lora_name=name, strength=1.0)[0] for name in loras]
    _equal(samples, [alone(base, tuned, scale=1.5, **inputs) for tuned in models])


def test_files_of_one_name_in_two_folders_are_told_apart(rlg: SimpleNamespace) -> None:
    short_names = rlg.module("nodes.axes").short_names
    assert short_names(["a/x.safetensors", "b/y.safetensors", "c"]) == ["x", "y", "c"]
    assert short_names(["a/x.safetensors", "b\\x.safetensors"]) == ["a/x.safetensors", "b\\x.safetensors"]


def test_loras_whose_names_differ_by_a_comma_alone_are_told_apart(base, run_node, models_dir) -> None:
    """Labels have no comma within a part; no MODEL is lost for that."""
    names = ["comma, one", "comma one"]
    for seed, name in enumerate(names):
        write_lora(models_dir, name, seed=seed)
    (axis,) = run_node("RLGLoraAxis", model=base, lora_1=names[0], lora_2=names[1], lora_3="none", lora_4="none")
    assert axis[0].texts == ("comma one (1)", "comma one (2)") and len({id(model) for model in axis[0].values}) == 2


def test_one_more_seed_costs_its_cells_alone(base, tune, run_node) -> None:
    tuned, inputs = tune(base), task(steps=3)
    counter = Counter(base)
    first, _ = _run(run_node, base, tuned, _axis(run_node, "seed", "1, 2"), **inputs)
    before = counter.rows
    more, _ = _run(run_node, base, tuned, _axis(run_node, "seed", "2, 3, 1"), **inputs)
    cost = counter.rows - before
    counter.handle.remove()
    assert 0 < cost == before / 2
    assert torch.equal(more[[4, 5, 0, 1]], first)


def test_the_progress_of_all_cells_is_one(base, tune, run_node, monkeypatch, every_step_reported) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((int(value), int(total)))
    )
    _run(run_node, base, tune(base), _axis(run_node, "seed", "1, 2"), **task(steps=3))
    assert [value for value, _ in seen] == sorted(value for value, _ in seen)
    assert {total for _, total in seen} == {12} and seen[-1] == (12, 12)


@pytest.mark.parametrize(
    ("vary", "values", "words"),
    [
        ("seed", "1.5", "values: 1.5 cannot be used for seed; give a whole number from 0 to 9007199254740992"),
        ("seed", "-1", "values: -1 cannot be used for seed"),
        ("cfg", "nan", "values: nan cannot be used for cfg; give a number from 0 to 100"),
        ("power", "0", "values: 0 cannot be used for power; give a number from 0.05 to 20"),
        ("cfg", " ", "values: there are none; write one or more for cfg"),
        ("cfg", "three", "values: 'three' is not a number"),
    ],
)
def test_values_that_cannot_be_used_are_one_sentence(run_node, vary: str, values: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _axis(run_node, vary, values)


def test_axes_that_contradict_each_other_are_one_sentence(base, tune, run_node) -> None:
    with pytest.raises(ValueError, match="axis: cfg is compared twice"):
        _axis(run_node, "cfg", "1", _axis(run_node, "cfg", "2"))
    with pytest.raises(ValueError, match="switch_percents: a ramp of the axis power has no switch point"):
        run_node(
            "RLGSweep", base=base, tuned=tune(base), scales="1", switch_percents="0.5",
            axis=_axis(run_node, "power", "2"), **task(steps=1),
        )  # fmt: skip


def test_a_plot_lies_along_what_varies() -> None:
    """Along the scale where it varies, and seeds are repetitions of one point."""
    written = [f"cfg {cfg}, scale {scale}, seed {seed}" for cfg in (3, 4) for scale in (0, 1) for seed in (7, 8)]
    axis, places = labels.places(written)
    assert axis == "scale" and [place.series for place in places] == ["cfg 3"] * 4 + ["cfg 4"] * 4
    assert {place.noise for place in places} == {"seed 7", "seed 8"}
    axis, places = labels.places(["lora x, cfg 3, scale 1, seed 7", "lora x, cfg 4, scale 1, seed 7"])
    assert axis == "cfg" and [(place.series, place.x) for place in places] == [
        ("lora x, scale 1", 3),
        ("lora x, scale 1", 4),
    ]


def test_a_set_keeps_ramps_and_refuses_what_it_has_no_place_for() -> None:
    plan, seed = labels.schedule_and_seed("power 3, scale 1.6, seed 7")
    assert (plan, seed) == (schedule.ramp(0.0, 1.6, "power", 3.0), 7)
    with pytest.raises(ValueError, match="labels: 'cfg 3' has no place in a set"):
        labels.schedule_and_seed("cfg 3, scale 1.6, seed 7")
