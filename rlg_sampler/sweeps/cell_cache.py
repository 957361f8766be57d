"""Cells of earlier sweeps: one more scale costs one more cell, and what was done before Cancel is not done again.

The host keeps the outputs of nodes and hands on the same objects as long as nothing before them has changed. So a cell
is known by the very objects that made it, and by the numbers. What is made anew is another object.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Scales = tuple[float, ...]
"""Of each step that runs."""
_MOST_TASKS = 256
"""A list of prompts makes as many tasks. Each holds its prompt, as the host does while the list is there."""


@dataclass(eq=False)
class _Task:
    """Models, prompts and latent, and what was made of them.

    Attributes:
        models: what is not kept alive for the sake of the cells.
        objects: other inputs.
        cells: values and scales → samples of shape (batch, channels, ...).
    """

    models: Sequence[weakref.ref]
    objects: Sequence[object]
    cells: dict[tuple[tuple[Any, ...], Scales], torch.Tensor] = field(default_factory=dict)

    def is_of(self, models: Sequence[object], objects: Sequence[object]) -> bool:
        return all(ref() is model for ref, model in zip(self.models, models, strict=True)) and all(
            mine is other for mine, other in zip(self.objects, objects, strict=True)
        )


@dataclass(frozen=True)
class KnownCells:
    """The cells of one task with the same values, by their scales.

    Attributes:
        values: inputs that are compared by value.
        cache: what these are a part of.
    """

    task: _Task
    values: tuple[Any, ...]
    cache: CellCache

    def get(self, scales: Scales) -> torch.Tensor | None:
        """Samples of shape (batch, channels, ...), if they are known."""
        return self.task.cells.get((self.values, scales))

    def keep(self, scales: Scales, samples: torch.Tensor) -> None:
        self.task.cells[self.values, scales] = samples
        self.cache.forget_oldest()


class CellCache:
    """The cells of the last tasks, up to a number of bytes."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._tasks: list[_Task] = []
        """The last used at the end."""

    def of(self, models: Sequence[object], objects: Sequence[object], values: tuple[Any, ...]) -> KnownCells:
        """The cells that are known of a task, to read and to add to.

        Args:
            models: MODELs; cells go with the first of them that goes.
            objects: other inputs that are the same only if they are the same object.
            values: inputs that are the same if they are equal.
        """
        task = next((task for task in self._tasks if task.is_of(models, objects)), None)
        if task is None:
            task = _Task([weakref.ref(model, self._forget) for model in models], objects)
        else:
            self._tasks.remove(task)
        self._tasks.append(task)
        del self._tasks[:-_MOST_TASKS]
        return KnownCells(task, values, self)

    def forget_oldest(self) -> None:
        """Until what is kept fits."""
        tasks = list(self._tasks)  # a model may go at any time
        while sum(samples.nbytes for task in tasks for samples in task.cells.values()) > self._max_bytes:
            oldest = next(task for task in tasks if task.cells)
            del oldest.cells[next(iter(oldest.cells))]
            if not oldest.cells and oldest in self._tasks[:-1]:
                self._tasks.remove(oldest)

    def _forget(self, gone: weakref.ref) -> None:
        """The tasks of a model that has gone, with the prompts and the latents that they hold."""
        for task in [task for task in self._tasks if gone in task.models]:
            self._tasks.remove(task)
