"""What every method is given: the same noise, sigmas and prompts; and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch

CFG, SCALE = 4.5, 1.6
LATENT_CHANNELS = 16
TEXT_TOKENS = 154  # CLIP's 77 and T5's 77: what the host makes of a short prompt


@dataclass
class Elapsed:
    """Seconds by the clock on the wall, and of work on all cores (which leaves out the time other programs took).

    A context manager; the seconds are those of its last block.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Elapsed:
        _finish()
        self.wall, self.cpu = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        _finish()
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def _finish() -> None:
    """Let a GPU finish what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Task:
    """One sampling run.

    Attributes:
        noise: shape (batch, 16, height, width); with an empty latent it is also where sampling starts.
        sigmas: shape (steps + 1,).
        positive, negative: (text, pooled) of shapes (1, tokens, 4096) and (1, 2048).
    """

    noise: torch.Tensor
    sigmas: torch.Tensor
    positive: tuple[torch.Tensor, torch.Tensor]
    negative: tuple[torch.Tensor, torch.Tensor]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def to(self, device: torch.device) -> Task:
        """The same with its tensors there."""
        positive, negative = ((text.to(device), pooled.to(device)) for text, pooled in (self.positive, self.negative))
        return Task(self.noise.to(device), self.sigmas.to(device), positive, negative)

    def conditioning(self, prompt: tuple[torch.Tensor, torch.Tensor]) -> list[list[Any]]:
        """A prompt as the host's CONDITIONING."""
        text, pooled = prompt
        return [[text, {"pooled_output": pooled}]]


@dataclass(frozen=True)
class Sample:
    """What a run gave.

    Attributes:
        latents: shaped like the noise, as the VAE takes them.
        steps: what its Euler steps took together.
        set_up: seconds before and after them.
    """

    latents: torch.Tensor
    steps: Elapsed
    set_up: float


@dataclass(frozen=True)
class Method:
    """A way to sample, and the network(s) whose forward is one model evaluation of it."""

    sample: Callable[[Task], Sample]
    networks: tuple[torch.nn.Module, ...]


def make_task(latent: int, batch: int, steps: int) -> Task:
    """A task for latents of `latent` × `latent`, on the schedule that SD3.5 has in the host and in the reference."""
    generator = torch.Generator().manual_seed(7)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=3.0)
    return Task(
        noise=randn(batch, LATENT_CHANNELS, latent, latent),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "normal", steps),
        positive=(randn(1, TEXT_TOKENS, 4096), randn(1, 2048)),
        negative=(randn(1, TEXT_TOKENS, 4096), randn(1, 2048)),
    )
