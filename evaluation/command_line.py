"""What the programs that run from a clone have in common: how they end, and numbers among their options."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 130
"""The exit code that shells give a program ended by Ctrl-C."""


def carried_out(work: Callable[[], None], *errors: type[Exception], stopped: str = "Stopped.") -> int:
    """Do the work of a command; the result is its exit code.

    Args:
        work: what to do. A kill ends it as Ctrl-C does: by an exception, so that nothing it started stays behind; under
            nohup the end of the terminal does not.
        errors: what may go wrong without being a bug; they are said in one line.
        stopped: what is said after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # Windows writes files and pipes in the code page of the country, which has neither "→" nor every name.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        work()
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return INTERRUPTED
    except errors as error:
        print(f"\nError: {error}", file=sys.stderr)
        return 1
    return 0


def at_least(least: int) -> Callable[[str], int]:
    """Parser of a whole number, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least}")
        return int(text)

    return parse
