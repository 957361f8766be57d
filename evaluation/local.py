"""One worker process on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from evaluation import worker
from evaluation.plan import Batch
from evaluation.worker import Job, Picture
from evaluation.workers import WorkerLost

_UNHEARD = 0.5
"""Seconds for which Ctrl-C may go unheard."""


class LocalWorker:
    """A process of its own, so that files are written while it computes; started again when it dies."""

    slots = 2  # one runs and one waits

    def __init__(self, job: Job) -> None:
        self._job = job
        self._out: dict[Future, Batch] = {}
        self._start()

    def describe(self) -> dict[str, Any]:
        try:
            future = self._pool.submit(worker.describe, self._job)
            _finished([future])
            return future.result()
        except BrokenProcessPool:
            self._restart()
            raise WorkerLost([]) from None

    def submit(self, batch: Batch) -> None:
        try:
            future = self._pool.submit(worker.render, self._job, batch)
        except BrokenProcessPool as error:
            # It died since; wait() tells.
            future = Future()
            future.set_exception(error)
        self._out[future] = batch

    def wait(self) -> tuple[Batch, list[Picture]]:
        done = _finished(self._out)
        # A finished batch counts, also when the process died after it.
        future = min(done, key=lambda future: isinstance(future.exception(), BrokenProcessPool))
        if isinstance(future.exception(), BrokenProcessPool):
            wait(self._out)
            lost = [f for f in self._out if isinstance(f.exception(), BrokenProcessPool)]
            self._restart()
            raise WorkerLost([self._out.pop(f) for f in lost])
        return self._out.pop(future), future.result()

    def close(self) -> None:
        # What it still computes is not waited for: nobody would take it.
        self._alive.close()
        self._pool.shutdown(cancel_futures=True)

    def _restart(self) -> None:
        self.close()
        self._start()

    def _start(self) -> None:
        # Not forked: the host has threads and CUDA, which do not survive that.
        context = multiprocessing.get_context("spawn")
        theirs, self._alive = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(1, context, initializer=_end_with_the_parent, initargs=(theirs,))


def _finished(futures: Iterable[Future]) -> set[Future]:
    """Wait for the first of them. Windows hears of Ctrl-C only between two waits."""
    while not (done := wait(futures, _UNHEARD, FIRST_COMPLETED).done):
        pass
    return done


def _end_with_the_parent(alive: Connection) -> None:
    """End this process at once when the other end of `alive` is closed, by the parent or by its death.

    A pool's process would wait for work forever where the parent was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in order

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
