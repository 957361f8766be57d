"""What a sweep has sampled it does not sample again, and what makes another picture is never mistaken for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch

from pairs import Counter, task
from without_host import cell_cache


def _run(run_node: Callable, base: Any, tuned: Any, scales: str, **inputs: Any) -> torch.Tensor:
    return run_node("RLGSweep", base=base, tuned=tuned, scales=scales, switch_percents="", **inputs)[0]["samples"]


@pytest.fixture
def counted(base: Any) -> Iterator[Counter]:
    counter = Counter(base)
    yield counter
    counter.handle.remove()


def test_one_more_scale_costs_one_more_cell(base, tune, run_node, counted) -> None:
    tuned, inputs = tune(base), task(steps=3)
    first = _run(run_node, base, tuned, "0, 1.6", **inputs)
    before = counted.rows
    more = _run(run_node, base, tuned, "0, 0.5, 1.6", **inputs)
    cost, before = counted.rows - before, counted.rows
    alone = _run(run_node, base, tuned, "0.5", **{**inputs, "latent_image": dict(inputs["latent_image"])})
    assert cost == counted.rows - before > 0
    assert torch.equal(more, torch.stack([first[0], alone[0], first[1]]))


def test_a_list_of_prompts_is_remembered_as_a_whole() -> None:
    """The host runs the node once for each of them, always in the same order."""
    cache, model, prompts = cell_cache.CellCache(2**20), _Model(), [object() for _ in range(100)]
    for prompt in prompts:
        cache.of([model], [prompt], ()).keep((1.0,), torch.zeros(1))
    assert all(cache.of([model], [prompt], ()).get((1.0,)) is not None for prompt in prompts)


def test_of_a_task_without_cells_nothing_is_kept() -> None:
    cache, model, prompts = cell_cache.CellCache(16), _Model(), [_Model() for _ in range(5)]
    for prompt in prompts:
        cache.of([model], [prompt], ()).keep((1.0,), torch.zeros(4))
    held = [weakref.ref(prompt) for prompt in prompts]
    del prompts, prompt
    gc.collect()
    assert [reference() is not None for reference in held] == [False] * 4 + [True]


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"steps": 4}, {"cfg": 3.0}, {"sampler_name": "heun"}, {"scheduler": "simple"}, {"tuned_cfg": 1.0}],
    ids=str,
)
def test_what_makes_another_picture_is_sampled(base, tune, run_node, counted, change) -> None:
    tuned, inputs = tune(base), task(steps=3)
    _run(run_node, base, tuned, "0.5", **inputs)
    before = counted.rows
    changed = _run(run_node, base, tuned, "0.5", **inputs | change)
    assert counted.rows > before
    fresh = task(steps=3) | change
    assert torch.equal(changed, _run(run_node, base, tune(base), "0.5", **fresh))


def test_another_model_prompt_or_latent_is_another_task(base, tune, run_node, counted) -> None:
    tuned, inputs = tune(base), task(steps=2)
    for base_, tuned_, inputs_ in (
        (base, tuned, inputs),
        (base, tune(base), inputs),
        (base.clone(), tuned, inputs),
        (base, tuned, inputs | {"positive": list(inputs["positive"])}),
        (base, tuned, inputs | {"latent_image": dict(inputs["latent_image"])}),
    ):
        before = counted.rows
        _run(run_node, base_, tuned_, "0.5", **inputs_)
        assert counted.rows > before


def test_patches_that_were_added_to_a_model_count(base, tune, run_node, counted) -> None:
    """The host's own word for that is a new `patches_uuid`."""
    tuned, inputs = tune(base), task(steps=2)
    _run(run_node, base, tuned, "0.5", **inputs)
    key = next(iter(tuned.patches))
    tuned.add_patches({key: (torch.zeros_like(base.model.state_dict()[key]),)})
    before = counted.rows
    _run(run_node, base, tuned, "0.5", **inputs)
    assert counted.rows > before


def test_cancel_keeps_the_cells_that_are_done(base, tune, run_node, counted, monkeypatch, every_step_reported) -> None:
    tuned, inputs = tune(base), task(steps=4)

    def cancel_at_the_second_cell(value: int, *_: Any, **__: Any) -> None:
        if value == 6:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel_at_the_second_cell)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        _run(run_node, base, tuned, "0.5, 2", **inputs)
    monkeypatch.undo()
    before = counted.rows
    done = _run(run_node, base, tuned, "0.5", **inputs)
    assert counted.rows == before
    assert torch.equal(done, _run(run_node, base, tune(base), "0.5", **inputs))


class _Model:
    """Something that can go."""


def test_the_oldest_cells_go_when_there_are_too_many() -> None:
    cache, models = cell_cache.CellCache(max_bytes=3 * 16), [_Model(), _Model()]
    first, second = (cache.of([model], [], ()) for model in models)
    for number in range(2):
        first.keep((float(number),), torch.ones(4))
        second.keep((float(number),), torch.ones(4))
    kept = [cells.get((float(n),)) is not None for cells in (first, second) for n in range(2)]
    assert sum(kept) == 3 and second.get((1.0,)) is not None


def test_cells_go_with_their_models() -> None:
    cache, model, other = cell_cache.CellCache(max_bytes=1000), _Model(), _Model()
    cache.of([model], [], ()).keep((1.0,), torch.ones(4))
    assert cache.of([model], [], ()).get((1.0,)) is not None
    del model
    gc.collect()
    cache.of([other], [], ())
    assert len(cache._tasks) == 1


def test_nothing_else_of_a_task_outlives_its_models() -> None:
    """Conditioning holds ControlNets and latents; it goes at once, and not with the next sweep."""
    cache, model, conditioning = cell_cache.CellCache(max_bytes=1000), _Model(), _Model()
    cache.of([model], [conditioning], ()).keep((1.0,), torch.ones(4))
    gone = weakref.ref(conditioning)
    del conditioning
    gc.collect()
    assert gone() is not None
    del model
    gc.collect()
    assert gone() is None
