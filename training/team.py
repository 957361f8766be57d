"""Workers that make one run together: each makes its own groups of pictures, and sums over all are known to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Value = TypeVar("Value")


class WorkerLost(Exception):
    """Another worker of the team has ended, so the run cannot go on."""


@dataclass(frozen=True)
class Team:
    """A worker's view of the team; with more than one, a process group of torch.distributed has been opened.

    All workers call `total` and `from_first` at the same points of a run. Where one has ended, they raise WorkerLost.

    Attributes:
        place: of this worker, 0 … size − 1. The first one keeps the files.
        size: number of workers.
    """

    place: int = 0
    size: int = 1

    def makes(self, number: int) -> bool:
        """Whether this worker makes the group of this number."""
        return number % self.size == self.place

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """The sum of all workers' tensors, the same bits for each; on the CPU."""
        if self.size == 1:
            return own
        everyone = own.clone()
        with _others():
            torch.distributed.all_reduce(everyone)
        return everyone

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first worker makes, such as what it reads from its disk."""
        made = [make() if self.place == 0 else None]
        if self.size > 1:
            with _others():
                torch.distributed.broadcast_object_list(made, src=0)
        return made[0]


ALONE = Team()
"""One worker that makes all."""


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo raises has no class of its own
        raise WorkerLost("another worker cannot be reached") from error
