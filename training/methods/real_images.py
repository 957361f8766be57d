"""Real pictures to start from, or to stay near to by the loss that diffusion models are made with."""

from __future__ import annotations

import torch

from ..policy.host_model import Run
from ..task import Task


class RealImages:
    """The task's images as latents, each encoded when it is first asked for.

    Args:
        task: with an image for each of its prompts.
        asked_by: the method that wants them, for the message.

    Raises:
        ValueError: the task has no images.
    """

    def __init__(self, task: Task, asked_by: str) -> None:
        if task.images is None:
            raise ValueError(f"images: {asked_by} learns from real pictures and there are none; connect some.")
        self._task = task
        self._known: dict[int, torch.Tensor] = {}

    def __getitem__(self, prompt: int) -> torch.Tensor:
        """(1, channels, ...) latents of a prompt's image, as the model sees them."""
        if prompt not in self._known:
            self._known[prompt] = self._task.encoded(prompt).cpu()
        return self._known[prompt]


def learn_from_image(run: Run, latents: torch.Tensor, noise: torch.Tensor, index: int, weight: float) -> float:
    """Add the gradient of the mean diffusion loss with a weight; the loss itself. Arguments are on any device."""
    with torch.enable_grad():
        loss = diffusion_loss(run, latents.to(run.device), noise.to(run.device), index).mean()
        (weight * loss).backward()
    return float(loss.detach())


def diffusion_loss(run: Run, latents: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
    """(rows,) mean squared error of the predicted noise (ε models) or velocity (flow models) at σ_index.

    Both are (latents − x0)/σ, since the noisy latents are known. The prediction is that for the prompt: what CFG makes
    of it is no estimate of them.

    Args:
        latents: clean ones, (rows, channels, ...).
        noise: as added, like `latents`.
    """
    x = run.start(noise, latents, index)
    x0 = run.predict(x, index, negative=torch.zeros_like(x)).positive
    return (((latents - x0) / run.sigmas[index]) ** 2).flatten(1).mean(dim=1)
