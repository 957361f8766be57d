"""Looking into a method at its model evaluations: counting them, or putting a network that does nothing in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from .task import Method, Sample, Task

Inputs = list[torch.Tensor]


@contextmanager
def at_evaluations(method: Method, call: Callable[[Inputs], None]) -> Iterator[None]:
    """Call `call` with the tensors given to the network, latents first, before each evaluation inside the block."""

    def hook(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        call([value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)])

    with ExitStack() as stack:
        for network in method.networks:
            stack.callback(network.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def counted(method: Method, task: Task) -> tuple[Sample, str]:
    """A run, and its model evaluations per step as "calls × rows"."""
    rows: list[int] = []
    with at_evaluations(method, lambda inputs: rows.append(inputs[0].shape[0])):
        sample = method.sample(task)
    return sample, f"{len(rows) / task.steps:g} × {sum(rows) / len(rows):g}"


@contextmanager
def idle(methods: Iterable[Method]) -> Iterator[None]:
    """Let the host's networks return their input at once, so that only the code around them takes time."""
    networks = {id(network): network for method in methods for network in method.networks}.values()
    for network in networks:
        network.forward = lambda x, *_, **__: x
    try:
        yield
    finally:
        for network in networks:
            del network.forward
