"""A team of workers on a Ray cluster that makes one run: its groups of pictures are shared out, its gradients added up.

Plain actors and torch.distributed, without Ray Train: the run keeps its own checkpoints and its own loop, so of Ray
Train nothing would be used but the start of the workers, at the price of its packages on every node.

The first worker is on this machine, since it keeps the files; the others need no disk in common with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.ray_cluster import LOST, PATIENCE, connect, own_node, ray, result, room
from evaluation.worker import agreed
from training.program.run import Job, Step, started
from training.team import WorkerLost

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = 5
"""So many teams that lose a worker with no iteration made in between: then it is not chance."""
_AFTERMATH = 10.0
"""Seconds in which the reason comes to light why a worker lost another."""


class _Actor:
    """A worker, in a process of its own."""

    def open(self, size: int) -> tuple[str, int]:
        """As the first worker: address and port where the others find the team."""
        import torch.distributed

        own = ray.util.get_node_ip_address()
        self._store = torch.distributed.TCPStore(own, 0, size, True, wait_for_workers=False)
        return own, self._store.port

    def begin(self, job: Job, place: int, size: int, address: tuple[str, int]) -> dict[str, Any]:
        """Join the team, and load what the plan names."""
        import torch.distributed

        store = self._store if place == 0 else torch.distributed.TCPStore(*address, size, False)
        torch.distributed.init_process_group("gloo", store=store, rank=place, world_size=size)
        self._run = started(job, place, size)
        return self._run.describe()

    def train(self) -> Iterator[Step]:
        """Make the run; as the first worker, and say how it goes."""
        yield from self._run.train()

    def follow(self) -> None:
        """As `train`, for those who have nothing to say."""
        for _ in self.train():
            pass

    def report(self) -> str:
        return self._run.report()


class _Team:
    """Actors that make the run together.

    Args:
        job: what is trained.
        count: of workers.
        needs: of each, as Ray takes it.
    """

    def __init__(self, job: Job, count: int, needs: dict[str, int]) -> None:
        self._job, self._count = job, count
        own = ray.get_runtime_context().get_node_id()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(own, soft=False)
        actor = ray.remote(_Actor)
        self._first = actor.options(max_restarts=0, scheduling_strategy=here, **needs).remote()
        self._others = [actor.options(max_restarts=0, **needs).remote() for _ in range(count - 1)]

    def train(self) -> Iterator[tuple[Step, int]]:
        """Yields how it goes, and of how many iterations.

        Raises:
            LOST: a worker died.
            WorkerLost: it could not be reached any more.
            EvaluationError: the workers refused, or are not alike.
        """
        until = self._begin()
        steps = self._first.train.options(num_returns="streaming").remote()
        pending = [steps, *(other.follow.remote() for other in self._others)]
        while pending:
            (done,), pending = ray.wait(pending, num_returns=1)
            if done is not steps:
                _result(done, pending)
            elif (reference := next(steps, None)) is not None:
                pending.append(steps)
                yield _result(reference, pending[:-1]), until

    def report(self) -> str:
        return result(self._first.report.remote())

    def end(self) -> None:
        for actor in (self._first, *self._others):
            ray.kill(actor)

    def _begin(self) -> int:
        (address,) = _results([self._first.open.remote(self._count)])
        actors = enumerate([self._first, *self._others])
        begun = [actor.begin.remote(self._job, place, self._count, address) for place, actor in actors]
        return agreed(_results(begun))["iterations"]


def train(job: Job, address: str, count: int | None, show: Callable[[Step, int], None]) -> str:
    """Carry a plan out on a cluster; a team that loses a worker is replaced, and goes on from the checkpoint.

    Args:
        job: what is trained.
        address: of the cluster, "auto", or "local" for one of this machine's own.
        count: of workers; None takes one for each GPU, or as many as the plan's threads allow.
        show: told how it goes, and of how many iterations.

    Returns:
        What came of it.

    Raises:
        EvaluationError: there is no such cluster, the plan cannot be carried out, or workers die one after another.
    """
    wanted = job.plan.threads
    connect(address, wanted or max(1, (os.cpu_count() or 1) // (count or 1)), count)
    try:
        # Where Ray has counted the cores itself it knows what a container may use.
        threads = wanted or max(1, int(own_node().get("CPU", 0)) // (count or 1))
        count, needs = room(threads, count)
        _check_here(needs)
        done, losses = 0, 0
        while losses < GIVE_UP_AFTER:
            team = _Team(job, count, needs)
            try:
                for step, until in team.train():
                    done, losses = max(done, step.number), losses if step.number <= done else 0
                    show(step, until)
                return team.report()
            except (*LOST, WorkerLost):
                losses += 1
                logger.warning("A worker died; another team goes on from the last checkpoint.")
            finally:
                team.end()
    finally:
        ray.shutdown()
    raise EvaluationError(
        f"--workers: {losses} times in a row a worker died before an iteration was made, which is no chance (out of "
        "memory?); lower batch_size or the number of workers, and run this again: it goes on."
    )


def _check_here(needs: dict[str, int]) -> None:
    """Raises EvaluationError: this machine, where the files are kept, has no room for the first worker."""
    resources = own_node()
    if resources.get("GPU", 0) < needs.get("num_gpus", 0) or resources.get("CPU", 0) < needs["num_cpus"]:
        raise EvaluationError(
            "--ray: the first worker keeps the files, and this machine has no GPU or too few cores for it; start this "
            "on one that has."
        )


def _results(references: Sequence[ray.ObjectRef]) -> list[Any]:
    """Of all, in their order; the first that fails ends it."""
    pending = list(references)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=PATIENCE)
        if not done:
            logger.warning("%d of %d workers are not up; is the cluster busy?", len(pending), len(references))
        for reference in done:
            _result(reference, pending)
    return [result(reference) for reference in references]


def _result(reference: ray.ObjectRef, others: Sequence[Any]) -> Any:
    """As `result`; for a worker that lost another, what became of that one."""
    try:
        return result(reference)
    except WorkerLost:
        ready, _ = ray.wait(list(others), num_returns=len(others), timeout=_AFTERMATH) if others else ([], [])
        for other in ready:
            with contextlib.suppress(WorkerLost, StopIteration):
                result(next(other) if isinstance(other, ray.ObjectRefGenerator) else other)
        raise
