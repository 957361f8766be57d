"""One line at the bottom of the terminal that says what is going on."""

from __future__ import annotations

import sys
import time


class Progress:
    """Status line with the minutes since the start; where output is not a terminal, a line per change of stage."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._width = 0

    def __call__(self, text: str) -> None:
        line = f"[{(time.perf_counter() - self._start) / 60:4.1f} min] {text}"
        if sys.stderr.isatty():
            sys.stderr.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def print(self, text: str) -> None:
        """Print something that stays, on standard output."""
        if sys.stderr.isatty():
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
        print(text, flush=True)
