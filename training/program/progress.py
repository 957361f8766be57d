"""How far a run is, on a terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm

from training.program.run import Step


class Progress:
    """A bar over the iterations of the whole run; it appears with the first step."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._done = 0

    def show(self, step: Step, until: int) -> None:
        """After an iteration, of so many."""
        if self._bar is None:
            self._bar = tqdm(total=until, bar_format="{desc}: {bar}| {elapsed}", file=sys.stderr, dynamic_ncols=True)
        self._done = step.number
        self._bar.set_description_str(step.status, refresh=False)
        self.during(0.0)

    def during(self, share: float) -> None:
        """The present iteration is done to this share."""
        if self._bar is not None:
            self._bar.n = min(self._done + share, self._bar.total)
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
