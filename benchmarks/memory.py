"""What each way to an RLG step keeps in memory, each in a process of its own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import psutil
import torch

from evaluation.host import Extension, device

from .evaluations import at_evaluations
from .measure import load_methods
from .models import Files, add_lora_folder
from .task import make_task

_STEPS = 2
_SAMPLING_INTERVAL = 0.01


@dataclass(frozen=True)
class Memory:
    """Bytes, without what the program takes before it loads a model.

    Attributes:
        weights: tensors held while the network runs, besides its inputs: parameters, patches, deltas, backups.
        peak: most that the process held while sampling, activations included: resident memory, or the GPU's own.
    """

    weights: int
    peak: int


def measure_memory(name: str, files: Files, latent: int, dtype: torch.dtype) -> Memory:
    """Of a method on latents of a side, with weights held in `dtype`; to be called in a process of its own."""
    extension = Extension()
    add_lora_folder(files.adapter.parent)
    task = make_task(latent, 1, _STEPS)
    with torch.inference_mode():
        before = _storages(gc.get_objects()).keys()
        used_before = used()
        method = load_methods(files, extension, [name], dtype)[name]
        held = []

        def note(inputs: Sequence[torch.Tensor]) -> None:
            storages = _storages(gc.get_objects())
            held.append(sum(storages[key] for key in storages.keys() - before - _storages(inputs).keys()))

        with at_evaluations(method, note):
            method.sample(task)
        with peak() as highest:
            method.sample(task)
    return Memory(max(held), highest.bytes - used_before)


def _storages(objects: Sequence[object]) -> dict[int, int]:
    """Address → bytes of the device's memory behind the tensors among `objects`; views share one entry."""
    where = device().type
    # By type alone: asking lazy modules for their class would import them.
    tensors = [o for o in objects if issubclass(type(o), torch.Tensor) and o.device.type == where]
    storages = [t.untyped_storage() for t in tensors if t.layout is torch.strided]
    return {s.data_ptr(): s.nbytes() for s in storages}


def used() -> int:
    """Bytes in use now: of the GPU, or of main memory by this process."""
    if device().type == "cuda":
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


@contextmanager
def peak() -> Iterator[SimpleNamespace]:
    """Watch `used`; `bytes` of the result is its peak inside the block."""
    highest, stop = SimpleNamespace(bytes=0), threading.Event()
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield highest
        highest.bytes = torch.cuda.max_memory_allocated()
        return

    def watch() -> None:
        while not stop.wait(_SAMPLING_INTERVAL):
            highest.bytes = max(highest.bytes, used())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        stop.set()
        thread.join()
