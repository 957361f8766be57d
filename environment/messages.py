"""What the user is told."""

from __future__ import annotations

import sys


class SetupError(Exception):
    """The message is one line: what failed, and what to do about it."""


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)
