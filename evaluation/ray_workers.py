"""Workers on a Ray cluster: an actor for each GPU, or for every few cores where there is none.

See `ray_cluster` for what the nodes need. Files are written by the process that is started, so nodes need not share a
disk.
"""

from __future__ import annotations

import logging
from typing import Any

from evaluation import worker
from evaluation.errors import EvaluationError
from evaluation.plan import Batch
from evaluation.ray_cluster import LOST, PATIENCE, connect, ray, result, room
from evaluation.worker import Job, Picture
from evaluation.workers import WorkerLost

logger = logging.getLogger(__name__)

_AHEAD = 2
"""Batches that an actor has: one runs and one waits."""


class _Actor:
    """One process of the cluster."""

    def describe(self, job: Job) -> dict[str, Any]:
        return worker.describe(job)

    def render(self, job: Job, batch: Batch) -> list[Picture]:
        return worker.render(job, batch)


class RayWorkers:
    """Actors that are replaced when they, or the machines they are on, die.

    Args:
        job: what they work on.
        address: of the cluster, "auto", or "local" for one of this machine's own.
        count: of actors; None takes one for each GPU, or all cores at the plan's threads for each.

    Raises:
        EvaluationError: there is no such cluster, or it is too small.
    """

    def __init__(self, job: Job, address: str, count: int | None) -> None:
        connect(address, job.plan.threads, count)
        try:
            count, needs = room(job.plan.threads, count)
        except EvaluationError:
            ray.shutdown()
            raise
        self._make = ray.remote(_Actor).options(max_restarts=0, **needs).remote
        self._job = ray.put(job)
        self._actors = [self._make() for _ in range(count)]
        self._out: dict[ray.ObjectRef, tuple[int, Batch]] = {}

    @property
    def slots(self) -> int:
        return _AHEAD * len(self._actors)

    def describe(self) -> dict[str, Any]:
        """Of all of them, which have to agree; see Renderer.describe."""
        references = pending = [actor.describe.remote(self._job) for actor in self._actors]
        while pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=PATIENCE)
            if pending:
                logger.warning("%d of %d workers are not up; is the cluster busy?", len(pending), len(references))
        found = []
        for index, reference in enumerate(references):
            try:
                found.append(result(reference))
            except LOST:
                self._actors[index] = self._make()
                raise WorkerLost([]) from None
        return worker.agreed(found)

    def submit(self, batch: Batch) -> None:
        load = [index for index, _ in self._out.values()]
        index = min(range(len(self._actors)), key=load.count)
        self._out[self._actors[index].render.remote(self._job, batch)] = index, batch

    def wait(self) -> tuple[Batch, list[Picture]]:
        (done,), _ = ray.wait(list(self._out), num_returns=1)
        index, batch = self._out.pop(done)
        try:
            return batch, result(done)
        except LOST:
            lost = [reference for reference, (of_actor, _) in self._out.items() if of_actor == index]
            batches = [batch, *(self._out.pop(reference)[1] for reference in lost)]
            ray.kill(self._actors[index])
            self._actors[index] = self._make()
            raise WorkerLost(batches) from None

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()
