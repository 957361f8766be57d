"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WAITS = (0.1, 0.3, 1.0)  # seconds


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def advice(error: Exception) -> str:
    """What to do about a file that could not be written, to be read after the reason."""
    if isinstance(error, PermissionError):
        return "close it in the program that has it open, or check the folder's rights"
    return "make room on the disk, or check its rights"


def _replace(temporary: Path, path: Path) -> None:
    """On Windows a scanner that looks at a new file, or an indexer, keeps it for a moment."""
    for wait in _WAITS:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(temporary, path)
