"""What is a difference of two models' patches, and how much of them is read to know it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from torch.utils._python_dispatch import TorchDispatchMode

from rlg_sampler.weights.patch_difference import patch_difference

OUT, IN, RANK = 3000, 200, 4


class NumbersRead(TorchDispatchMode):
    """While entered, counts the numbers that operations are given to compute with."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        of_result = result.untyped_storage().data_ptr() if isinstance(result, torch.Tensor) else None
        for argument in args:
            # A view of it reads nothing.
            if isinstance(argument, torch.Tensor) and argument.untyped_storage().data_ptr() != of_result:
                self.count += argument.numel()
        return result


def _lora(up: torch.Tensor, down: torch.Tensor, alpha: float | None = None) -> LoRAAdapter:
    return LoRAAdapter(set(), (up, down, alpha, None, None, None))


def _diff(change: torch.Tensor) -> tuple:
    return "diff", (change,)


def _differs(adapter: Any) -> bool:
    return bool(patch_difference({}, {"weight": [(1.0, adapter, 1.0, None, None)]}))


def _late(*shape: int) -> torch.Tensor:
    """Zeros but for the last number."""
    numbers = torch.zeros(shape)
    numbers[(-1,) * len(shape)] = 1e-6
    return numbers


@pytest.mark.parametrize(
    "adapter",
    [_lora(torch.ones(OUT, RANK), torch.ones(RANK, IN)), _diff(torch.ones(OUT, IN))],
    ids=["low-rank", "full"],
)
def test_that_a_trained_lora_changes_something_is_known_from_a_few_of_its_numbers(adapter: Any) -> None:
    """It is asked before each run, and the file of a large one takes a second to read."""
    with NumbersRead() as read:
        assert _differs(adapter)
    assert 0 < read.count < OUT


@pytest.mark.parametrize(
    ("adapter", "changes"),
    [
        (_lora(_late(OUT, RANK), _late(RANK, IN)), True),
        (_lora(_late(OUT, RANK, 1, 1), _late(RANK, IN, 3, 3)), True),
        (_diff(_late(OUT, IN)), True),
        (_diff(_late(OUT)), True),
        (_diff(torch.tensor(1.0)), True),
        (_lora(torch.zeros(OUT, RANK), torch.ones(RANK, IN)), False),
        (_lora(torch.ones(OUT, RANK), torch.zeros(RANK, IN)), False),
        (_lora(torch.ones(OUT, RANK), torch.ones(RANK, IN), 0.0), False),
        (_diff(torch.zeros(OUT, IN)), False),
        (_diff(torch.tensor(0.0)), False),
        (_diff(torch.zeros(0)), False),
    ],
)
def test_a_lora_changes_nothing_where_all_of_its_numbers_are_zero(adapter: Any, changes: bool) -> None:
    """As before any training; wherever the others stand."""
    assert _differs(adapter) == changes
