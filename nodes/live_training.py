"""What a page sees of a training run while it goes on: progress, time left, a preview, and the course so far."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from ..rewards.pixels import to_bytes
from ..training.previews import Previews
from ..training.progress import status
from ..training.trainer import Trainer
from . import page

EVENT = "rlg_training"
"""The message of the server that `web/training_curve.js` listens to, and the key of the same in the node's output."""
_LARGEST_PREVIEW = 768
_PARTS = 100
"""Of the progress bar, per iteration."""


class LiveTraining:
    """Tells the page how a run goes.

    Args:
        node: id of the node in the prompt; None where there is no page.
        trainer: the run.
        until: number of iterations of the whole run.
        previews: pictures to show; None shows none.
    """

    def __init__(self, node: str | None, trainer: Trainer, until: int, previews: Previews | None) -> None:
        self._node, self._trainer, self._until, self._previews = node, trainer, until, previews
        self._bar = comfy.utils.ProgressBar(until * _PARTS)
        self._tell()
        self._show()

    def during(self, share: float) -> None:
        """The present iteration is done to this share."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(round((len(self._trainer.history) + share) * _PARTS))
        if not self._trainer.history:
            self._tell()

    def after_iteration(self) -> None:
        """An iteration is done."""
        self._tell()
        if self._previews is not None and self._previews.is_due:
            self._show()

    def stopped(self) -> None:
        """The run ends before its last iteration: Cancel, or an error."""
        done = len(self._trainer.history)
        memory = "" if done or not self._trainer.memory else f"; {self._trainer.memory}"
        self._tell(status=f"stopped after iteration {done} of {self._until}{memory}")

    def course(self) -> dict[str, Any]:
        """The run so far, for the curve in the node."""
        names = ("number", "reward", "spread", "kl", "clipped")
        entries = [{name: _finite(getattr(entry, name)) for name in names} for entry in self._trainer.history]
        line = status(self._trainer.history, self._until, self._trainer.memory)
        return {"node": self._node, "status": line, "entries": entries}

    def _tell(self, **instead: str) -> None:
        if self._node is not None:
            page.send(EVENT, self.course() | instead)

    def _show(self) -> None:
        if self._previews is None:
            return
        image = Image.fromarray(to_bytes(self._previews.picture())[0])
        done = len(self._trainer.history) * _PARTS
        self._bar.update_absolute(done, preview=("JPEG", image, _LARGEST_PREVIEW))


def _finite(value: float) -> float | None:
    """JSON has no word for what is not a number, and the page would drop the whole message."""
    return value if math.isfinite(value) else None
