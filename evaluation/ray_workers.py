"""Workers on a Ray cluster: an actor for each GPU, or for every few cores where there is none.

Needs the extra `ray` (`pip install ray`) here and on every node, and the same ComfyUI, models and extension at the same
paths on each. Files are written by the process that is started, so nodes need not share a disk.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from evaluation import worker
from evaluation.errors import EvaluationError
from evaluation.host import REPO
from evaluation.pictures import Picture
from evaluation.plan import Batch
from evaluation.worker import Job
from evaluation.workers import WorkerLost

logger = logging.getLogger(__name__)

try:
    import ray
    from ray.exceptions import (
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        RayError,
        RayTaskError,
        WorkerCrashedError,
    )
except ImportError as error:
    raise EvaluationError("--ray: Ray is not installed; run `pip install ray` in this Python environment.") from error

_AHEAD = 2
"""Batches that an actor has: one runs and one waits."""
_PATIENCE = 120.0
"""Seconds after which workers that do not come up are worth a word."""
_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)


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
        _connect(job, address, count)
        try:
            count, needs = _room(job.plan.threads, count)
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
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=_PATIENCE)
            if pending:
                logger.warning("%d of %d workers are not up; is the cluster busy?", len(pending), len(references))
        found = []
        for index, reference in enumerate(references):
            try:
                found.append(_result(reference))
            except _LOST:
                self._actors[index] = self._make()
                raise WorkerLost([]) from None
        for other in found:
            if unlike := worker.difference(found[0], other):
                raise EvaluationError(f"--ray: the workers are not alike ({unlike}); make them so, or use fewer nodes.")
        return found[0]

    def submit(self, batch: Batch) -> None:
        load = [index for index, _ in self._out.values()]
        index = min(range(len(self._actors)), key=load.count)
        self._out[self._actors[index].render.remote(self._job, batch)] = index, batch

    def wait(self) -> tuple[Batch, list[Picture]]:
        (done,), _ = ray.wait(list(self._out), num_returns=1)
        index, batch = self._out.pop(done)
        try:
            return batch, _result(done)
        except _LOST:
            lost = [reference for reference, (of_actor, _) in self._out.items() if of_actor == index]
            batches = [batch, *(self._out.pop(reference)[1] for reference in lost)]
            ray.kill(self._actors[index])
            self._actors[index] = self._make()
            raise WorkerLost(batches) from None

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()


def _connect(job: Job, address: str, count: int | None) -> None:
    # Where the package is found, also by processes that Ray starts in other folders, and what is found here.
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "logging_level": logging.WARNING}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own tells nobody of itself
        if count is not None:
            options["num_cpus"] = count * job.plan.threads
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = str(error).split("\n")[0].rstrip(".")
        raise EvaluationError(f"--ray: no cluster at '{address}' ({text}); start one, or give its address.") from None


def _room(threads: int, count: int | None) -> tuple[int, dict[str, int]]:
    """How many actors, and what each needs.

    Raises:
        EvaluationError: the cluster is too small.
    """
    cluster = ray.cluster_resources()
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    available = gpus or cpus // threads
    if not available:
        raise EvaluationError(f"threads: no worker with {threads} fits the cluster of {cpus} cores; lower it.")
    if count is not None and count > available:
        raise EvaluationError(f"--workers: the cluster has room for {available}, not for {count}; ask for fewer.")
    # A GPU's host threads share the cores that there are; without one, threads are what computes.
    needs = {"num_gpus": 1, "num_cpus": min(threads, cpus // gpus)} if gpus else {"num_cpus": threads}
    return count or available, needs


def _result(reference: ray.ObjectRef) -> Any:
    """What a worker gave back.

    Raises:
        _LOST: it died.
        EvaluationError: it refused, or cannot work.
        RayTaskError: anything else that went wrong in it, with its traceback.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:  # before the next: it may also be of the class of its cause
        if isinstance(error.cause, EvaluationError):
            raise error.cause from None
        if isinstance(error.cause, (RayError, ImportError)):
            raise _unusable(error.cause) from None
        raise
    except _LOST:
        raise
    except RayError as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> EvaluationError:
    text = " ".join(str(error).strip().split("\n")[0].split()).rstrip(".")
    return EvaluationError(
        f"--ray: a worker cannot work ({text}); ComfyUI, models and this extension have to be at the same paths on "
        "every node."
    )
