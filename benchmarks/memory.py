"""What each way to an RLG step keeps in memory, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch

from evaluation.host import Extension, open_host

from . import diffusers_loop, methods, models
from .evaluations import at_evaluations
from .models import Files
from .names import DIFFUSERS, OURS, PLAIN
from .task import make_task

_STEPS = 2
_SAMPLING_INTERVAL = 0.01


@dataclass(frozen=True)
class Memory:
    """Bytes, without what the program takes before it loads a model.

    Attributes:
        weights: tensors held while the network runs, besides its inputs: parameters, patches, deltas, backups.
        resident: peak of the process's resident memory while sampling, activations included.
    """

    weights: int
    resident: int


def measure_memory(name: str, host: Path, files: Files, latent: int) -> Memory:
    """`Memory` of one method, from a fresh process.

    Args:
        name: `PLAIN`, `OURS`, `TWO_LOADED` or `DIFFUSERS`.
        latent: side of the latents.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=open_host, initargs=(host,)) as pool:
        return pool.submit(_measure_here, name, files, latent).result()


def _measure_here(name: str, files: Files, latent: int) -> Memory:
    extension = Extension()
    models.add_lora_folder(files.adapter.parent)
    task = make_task(latent, 1, _STEPS)
    with torch.inference_mode():
        before = _storages(gc.get_objects()).keys()
        resident_before = psutil.Process().memory_info().rss
        if name == DIFFUSERS:
            transformer = diffusers_loop.load_transformer(files.base, files.adapter)
            method = diffusers_loop.diffusers_peft(transformer)
        else:
            base = models.load_model(files.base)
            if name == PLAIN:
                method = methods.plain_cfg(base)
            elif name == OURS:
                method = methods.rlg_guider(base, models.load_tuned(base, files.adapter, extension), extension)
            else:
                method = methods.two_stock_guiders(base, models.load_model(files.merged))
        held = []

        def note(inputs: Sequence[torch.Tensor]) -> None:
            storages = _storages(gc.get_objects())
            held.append(sum(storages[key] for key in storages.keys() - before - _storages(inputs).keys()))

        with at_evaluations(method, note):
            method.sample(task)
        with _resident_peak() as peak:
            method.sample(task)
    return Memory(max(held), peak.bytes - resident_before)


def _storages(objects: Sequence[object]) -> dict[int, int]:
    """Address → bytes of the memory behind the tensors among `objects`; views share one entry."""
    # By type alone: asking lazy modules for their class would import them.
    tensors = [o for o in objects if issubclass(type(o), torch.Tensor) and o.device.type == "cpu"]
    storages = [t.untyped_storage() for t in tensors if t.layout is torch.strided]
    return {s.data_ptr(): s.nbytes() for s in storages}


@contextmanager
def _resident_peak() -> Iterator[SimpleNamespace]:
    """Watch this process's resident memory; `bytes` of the result is its peak inside the block."""
    process, peak, stop = psutil.Process(), SimpleNamespace(bytes=0), threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLING_INTERVAL):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
