"""`python -m training` with a state written after every iteration, for runs that are to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import evaluation.host
from training.__main__ import main


class Impatient(evaluation.host.Extension):
    def __init__(self) -> None:
        super().__init__()
        trainer = self.module("training.trainer")
        trainer._SECONDS_BETWEEN_CHECKPOINTS = trainer._TIMES_ITS_WRITING = 0.0


if __name__ == "__main__":
    evaluation.host.Extension = Impatient
    sys.exit(main())
