"""A Ray cluster, as programs that work on it need it: joined, measured, and its errors in words.

Needs the extra `ray` (`pip install ray`) here and on every node, and the same ComfyUI, models and extension at the same
paths on each.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.host import REPO

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

PATIENCE = 120.0
"""Seconds after which workers that do not come up are worth a word."""
LOST = (RayActorError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)
"""What is raised for a worker that died."""


def connect(address: str, threads: int, count: int | None) -> None:
    """Join a cluster.

    Args:
        address: of the cluster, "auto", or "local" for one of this machine's own.
        threads: that a worker needs.
        count: of workers, if it is known.

    Raises:
        EvaluationError: there is no such cluster.
    """
    # Where the package is found, also by processes that Ray starts in other folders, and what is found here.
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "logging_level": logging.WARNING}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own tells nobody of itself
        if count is not None:
            options["num_cpus"] = count * threads
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = str(error).split("\n")[0].rstrip(".")
        raise EvaluationError(f"--ray: no cluster at '{address}' ({text}); start one, or give its address.") from None


def room(threads: int, count: int | None) -> tuple[int, dict[str, int]]:
    """How many actors, and what each needs.

    Raises:
        EvaluationError: the cluster is too small.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(int(of.get("GPU", 0)), int(of.get("CPU", 0))) for of in machines]
    with_gpu = [(gpus, cpus) for gpus, cpus in nodes if gpus]
    available = sum(gpus for gpus, _ in with_gpu) or sum(cpus // threads for _, cpus in nodes)
    if not available:
        largest = max(cpus for _, cpus in nodes)
        raise EvaluationError(f"threads: no worker with {threads} fits a machine of {largest} cores; lower it.")
    if count is not None and count > available:
        raise EvaluationError(f"--workers: the cluster has room for {available}, not for {count}; ask for fewer.")
    # A GPU's host threads share the cores beside it; without one, threads are what computes.
    beside = [cpus // gpus for gpus, cpus in with_gpu]
    needs = {"num_gpus": 1, "num_cpus": min(threads, *beside)} if beside else {"num_cpus": threads}
    return count or available, needs


def own_node() -> dict[str, float]:
    """Resources of this machine."""
    own = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    return resources


def result(reference: ray.ObjectRef) -> Any:
    """What a worker gave back.

    Raises:
        LOST: it died.
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
    except LOST:
        raise
    except RayError as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> EvaluationError:
    text = " ".join(str(error).strip().split("\n")[0].split()).rstrip(".")
    return EvaluationError(
        f"--ray: a worker cannot work ({text}); ComfyUI, models and this extension have to be at the same paths on "
        "every node."
    )
