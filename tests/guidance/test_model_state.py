"""What packs write into a model that several branches share: each goes on with its own, and samplers find it there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

BASE, TUNED = 0, 1


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


@pytest.fixture
def states(rlg: SimpleNamespace, model: torch.nn.Module) -> Any:
    return rlg.module("rlg_sampler.guidance.model_state").BranchStates(model)


def test_a_branch_goes_on_with_what_it_left(states: Any, model: torch.nn.Module) -> None:
    for branch in (BASE, TUNED):
        with states.of(branch):
            assert not hasattr(model, "kept")
            model.kept = branch
    for branch in (BASE, TUNED, TUNED, BASE):
        with states.of(branch):
            assert model.kept == branch


def test_what_was_there_before_is_the_start_of_each(states: Any, model: torch.nn.Module) -> None:
    """Containers too, which are written into."""
    model.kept = {"calls": [0]}
    for branch in (BASE, TUNED):
        with states.of(branch):
            assert model.kept == {"calls": [0]}
            model.kept["calls"].append(branch)
    with states.of(BASE):
        assert model.kept == {"calls": [0, BASE]}


def test_samplers_find_what_the_last_call_left(states: Any, model: torch.nn.Module) -> None:
    with states.of(BASE):
        model.kept = "base"
    assert model.kept == "base"
    with states.of(TUNED):
        model.kept = "tuned"
    assert model.kept == "tuned"


def test_what_a_sampler_writes_between_calls_is_for_all(states: Any, model: torch.nn.Module) -> None:
    """As a counter that it sets back before each step."""
    for _ in range(3):
        model.calls = 0
        for branch in (BASE, TUNED):
            with states.of(branch):
                model.calls += 1
                assert model.calls == 1


def test_what_is_taken_away_stays_away(states: Any, model: torch.nn.Module) -> None:
    model.first, model.whole_run = True, True
    for branch in (BASE, TUNED):
        with states.of(branch):
            del model.first
    del model.whole_run
    for branch in (BASE, TUNED):
        with states.of(branch):
            assert not hasattr(model, "first") and not hasattr(model, "whole_run")


def test_a_run_leaves_what_one_of_the_base_leaves(states: Any, model: torch.nn.Module) -> None:
    for branch, name in ((BASE, "kept"), (TUNED, "other")):
        with states.of(branch):
            setattr(model, name, branch)
    states.leave()
    assert model.kept == BASE and not hasattr(model, "other")


def test_weights_hooks_and_functions_are_no_states(states: Any, model: torch.nn.Module) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x

    with states.of(BASE):
        model.forward = forward
        model.extra = torch.nn.Parameter(torch.ones(1))
    with states.of(TUNED):
        assert model.forward is forward and "extra" in dict(model.named_parameters())
