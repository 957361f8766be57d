"""Compiled models and models split over devices: the tuned branch must not become the base without a sign."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import comfy.model_management
import pytest
import torch

from pairs import CLOSE, load_checkpoint, relative, task, write_lora
from stock_guiders import two_models


def _compiled(model: Any) -> Any:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")  # traces and guards as any backend, generates no code
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two passes"])
@pytest.mark.parametrize("where", ["on the base", "on both", "after RLG Model"])
def test_compiled_model_knows_its_deltas(checkpoint, tune, run_node, rlg, monkeypatch, where, together) -> None:
    """The graph of an earlier stock run has no deltas in it: it must not be used for the tuned rows."""
    limit = float("inf") if together else -1
    monkeypatch.setattr(rlg.module("rlg_sampler.guidance.branch_calls"), "_CPU_ONE_BATCH_LATENT_PIXELS", limit)
    base, other = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    expected = two_models(base, tune(other), 1.6, **task())
    gc.collect()  # models of earlier tests take their graphs along when they go
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    if where == "after RLG Model":
        model = _compiled(run_node("RLGModel", base=base, tuned=tune(base), scale=1.6)[0])
        stock, tuned = _compiled(base), None
    else:
        stock = _compiled(base)
        tuned = tune(stock if where == "on both" else base)
        (model,) = run_node("RLGModel", base=stock, tuned=tuned, scale=1.6)
    before = run_node("KSampler", model=stock, **task())[0]["samples"]
    graphs = []
    for _ in range(2):
        assert relative(run_node("KSampler", model=model, **task())[0]["samples"], expected) < CLOSE
        graphs.append(torch._dynamo.utils.counters["frames"]["total"])
    assert graphs[0] == graphs[1], "a second run compiled again"
    assert torch.equal(run_node("KSampler", model=stock, **task())[0]["samples"], before)


@pytest.mark.slow
def test_compiling_a_guided_pair_of_checkpoints_compiles_the_base_alone(checkpoint, tune, run_node) -> None:
    """The compiled base must not be swapped into the tuned checkpoint."""
    base, tuned = load_checkpoint(checkpoint), tune(load_checkpoint(checkpoint))
    (model,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    expected = two_models(base, tuned, 1.6, **task())
    torch.compiler.reset()
    assert relative(run_node("KSampler", model=_compiled(model), **task())[0]["samples"], expected) < CLOSE


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """MultiGPU CFG Split, which keeps a copy of the model per device."""
    pytest.importorskip("comfy.multigpu", reason="this host cannot split a model over several devices")
    monkeypatch.setattr(comfy.model_management, "set_torch_device", lambda device: None)  # there is one CPU only

    def of(model: Any) -> Any:
        model = model.clone()
        copy = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
        copy.is_multigpu_base_clone = True
        model.set_additional_models("multigpu", [copy])
        model.match_multigpu_clones()
        return model

    return of


def test_branches_of_a_split_model(checkpoint, tune, run_node, split) -> None:
    """The deltas are on one of the copies only."""
    base, other = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    expected = two_models(base, tune(other), 1.6, **task())
    base = split(base)
    for tuned in (tune(base), tune(load_checkpoint(checkpoint))):
        ours = run_node("RLGKSampler", base=base, tuned=tuned, scale=1.6, **task())[0]["samples"]
        assert relative(ours, expected) < CLOSE


def test_a_tuned_checkpoint_is_not_copied_for_devices_that_do_not_evaluate_it(
    checkpoint, tune, run_node, split, monkeypatch
) -> None:
    """The host would read it from the disk anew for each of them, at each run."""
    base, tuned = split(load_checkpoint(checkpoint)), tune(load_checkpoint(checkpoint))
    copied, kind = [], type(base)
    own = kind.deepclone_multigpu
    monkeypatch.setattr(kind, "deepclone_multigpu", lambda *args, **more: copied.append(1) or own(*args, **more))
    run_node("RLGSweep", base=base, tuned=tuned, scales="0.5, 1.6, 3", switch_percents="", **task())
    (guided,) = run_node("RLGModel", base=base, tuned=tuned, scale=1.6)
    run_node("KSampler", model=guided, **task())
    assert copied == []


def test_the_copy_of_a_split_tuned_model_is_none_of_the_base(checkpoint, tune, run_node, split) -> None:
    base, other = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    expected = two_models(base, tune(other), 1.6, **task())
    ours = run_node("RLGKSampler", base=base, tuned=split(tune(other)), scale=1.6, **task())[0]["samples"]
    assert relative(ours, expected) < CLOSE


def test_a_lora_after_the_split_acts_on_the_copy_too(checkpoint, models_dir, tune, run_node, split) -> None:
    """A tuned MODEL that left the chain before it has the copy without it: the base must not be computed on that."""
    write_lora(models_dir, "style", seed=9)

    def style(model: Any) -> Any:
        return run_node("RLGLoadLora", model=model, lora_name="style", strength=1.0)[0]

    base, other = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    expected = two_models(style(base), tune(other), 1.6, **task())
    whole = split(load_checkpoint(checkpoint))
    ours = run_node("RLGKSampler", base=style(whole), tuned=tune(whole), scale=1.6, **task())[0]["samples"]
    assert relative(ours, expected) < CLOSE
