"""The prefix tree of a sweep, without a model."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from without_host import plan

cells = st.integers(1, 6).flatmap(
    lambda steps: st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0])] * steps), min_size=1, max_size=8)
)


def _evaluated(cells: list[tuple[float, ...]]) -> tuple[list[torch.Tensor], int]:
    """A sweep of a toy: latents become 3x + scale at each step; the result of each cell, and how many were computed."""
    shared, results, count = plan.SharedEvaluations(), [None] * len(cells), 0
    for cell, steps_shared in plan.in_turn(cells):
        shared.begin(steps_shared)
        x = torch.ones(1, 2)
        for step, scale in enumerate(cells[cell]):
            known = shared.at(step, x, torch.tensor([1.0 - step / 10]))
            if 0 not in known:
                known[0] = SimpleNamespace(x0=3 * x)
                count += 1
            x = known[0].x0 + scale
        results[cell] = x
    return results, count


@given(cells)
def test_each_prefix_is_evaluated_once(cells) -> None:
    """As many evaluations as there are different beginnings: the nodes of the tree, whose leaves need none."""
    results, count = _evaluated(cells)
    assert count == len({cell[:step] for cell in cells for step in range(len(cell))})
    for cell, result in zip(cells, results, strict=True):
        assert torch.equal(result, _evaluated([cell])[0][0])


@given(cells)
def test_every_cell_has_its_turn(cells) -> None:
    assert sorted(cell for cell, _ in plan.in_turn(cells)) == list(range(len(cells)))


def test_only_the_shared_beginning_is_kept() -> None:
    """Memory: a sweep of scales keeps one step, however many there are."""
    shared = plan.SharedEvaluations()
    ((_, steps_shared), _) = plan.in_turn([(0.0,) * 50, (1.0,) * 50])
    shared.begin(steps_shared)
    for step in range(50):
        shared.at(step, torch.zeros(1), torch.ones(1))
    assert len(shared._current) == 1


def test_latents_that_differ_end_the_sharing() -> None:
    """An adaptive sampler may take other steps: nothing is taken for what it is not."""
    shared = plan.SharedEvaluations()
    for (_, steps_shared), second in zip(plan.in_turn([(1.0,) * 3, (1.0,) * 3]), (1.0, 2.0), strict=True):
        shared.begin(steps_shared)
        found = []
        for step, x in enumerate((0.0, second, 3.0)):
            known = shared.at(step, torch.tensor([x]), torch.tensor([0.5]))
            found.append(dict(known))
            known[0] = x
    assert found == [{0: 0.0}, {}, {}]


def test_latents_changed_in_place_are_noticed() -> None:
    shared = plan.SharedEvaluations()
    (_, first), (_, second) = plan.in_turn([(1.0,), (1.0,)])
    x, sigma = torch.zeros(1), torch.ones(1)
    shared.begin(first)
    shared.at(0, x, sigma)[0] = "of zero"
    x += 1
    shared.begin(second)
    assert shared.at(0, x, sigma) == {}
