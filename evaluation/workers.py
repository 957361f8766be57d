"""Handing out batches to workers that may die."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from evaluation.errors import EvaluationError
from evaluation.plan import Batch
from evaluation.worker import Picture

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = 30
"""So many workers, beside one for each slot, that die with no batch finished in between: then it is not chance."""


_NO_CHANCE = (
    "{losses} workers died one after another, which is no chance (out of memory?); see their messages, free "
    "memory or take a larger machine, and run this again: what is done is kept. Smaller pictures are another plan, "
    "with an output of its own."
)


class WorkerLost(Exception):
    """A worker died. Its batches are to be handed out again."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__("a worker died")
        self.batches = batches


class Workers(Protocol):
    """Where batches are worked on."""

    slots: int
    """Batches that may be out at a time."""

    def describe(self) -> dict[str, Any]:
        """See Renderer.describe."""
        ...

    def submit(self, batch: Batch) -> None: ...

    def wait(self) -> tuple[Batch, list[Picture]]:
        """The next batch to be finished.

        Raises:
            WorkerLost: a worker died; there is another for the next batches.
            EvaluationError: a worker refused.
        """
        ...

    def close(self) -> None: ...


def described(workers: Workers) -> dict[str, Any]:
    """What a worker says of itself; where it dies, another is asked.

    Raises:
        EvaluationError: a worker refused, or they die one after another.
    """
    limit = GIVE_UP_AFTER + workers.slots
    for _ in range(limit):
        try:
            return workers.describe()
        except WorkerLost:
            logger.warning("A worker died while it started.")
    raise EvaluationError(_NO_CHANCE.format(losses=limit))


def rendered(batches: Iterable[Batch], workers: Workers) -> Iterator[tuple[Batch, list[Picture]]]:
    """Every batch once, in the order in which they are finished; those of dead workers are handed out again.

    Raises:
        EvaluationError: a worker refused, or they die one after another.
    """
    remaining, again = iter(batches), deque[Batch]()
    out = losses = 0
    while True:
        while out < workers.slots and (batch := again.popleft() if again else next(remaining, None)) is not None:
            workers.submit(batch)
            out += 1
        if not out:
            return
        try:
            finished = workers.wait()
        except WorkerLost as lost:
            losses += 1
            out -= len(lost.batches)
            again.extend(lost.batches)
            logger.warning("A worker died; what it had (%d batches) is handed out again.", len(lost.batches))
            if losses >= GIVE_UP_AFTER + workers.slots:
                raise EvaluationError(_NO_CHANCE.format(losses=losses)) from None
        else:
            out, losses = out - 1, 0
            yield finished
