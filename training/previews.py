"""What a run looks like while it goes on: pictures of fixed prompts, by the base model and by the tuned one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .policy.prompts import Prompts
    from .trainer import Trainer

_SEED = 1


class Previews:
    """Pictures of the same noise before and after training, to be compared.

    Args:
        trainer: the run.
        prompts: what to show.
        every: so many iterations between two of them.
    """

    def __init__(self, trainer: Trainer, prompts: Prompts, every: int) -> None:
        self._trainer, self._prompts, self._every = trainer, prompts, every
        self._of_base: torch.Tensor | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for one."""
        return len(self._trainer.history) % self._every == 0

    def picture(self) -> torch.Tensor:
        """IMAGE of one picture: the base model above, the tuned one below, a column for each prompt."""
        if self._of_base is None:
            self._of_base = self._trainer.pictures(self._prompts, _SEED, tuned=False)
        tuned = self._trainer.pictures(self._prompts, _SEED, tuned=True)
        return torch.cat([torch.cat(list(pictures), dim=1) for pictures in (self._of_base, tuned)])[None]
