"""The user's cache folder: where it is, and how folders in it are made whole, by one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from environment.messages import say

MARKER = ".rlg-complete.json"
"""Written last into whatever the cache holds; a folder without it is an interrupted one."""


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where all that can be made again is kept."""
    if chosen := environ.get("RLG_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        root = environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "comfyui-rlg"


@contextlib.contextmanager
def built_whole(folder: Path) -> Iterator[dict[str, object]]:
    """Build a folder wholly or not at all: the marker comes last, and a failure leaves nothing.

    Yields:
        A dictionary for what the marker should record.
    """

    if folder.exists():
        say(f"{folder} is incomplete or was changed: making it again.")
        remove(folder)
    record: dict[str, object] = {}
    try:
        yield record
        temporary = folder / f"{MARKER}.tmp"
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(folder / MARKER)
    except BaseException:
        remove(folder)
        raise


def remove(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)  # first, or a removal cut short would look complete
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process set up at a time. The system frees the lock, however its holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not try_lock(file.fileno()):
            say("Waiting for another dev.py to finish setting up ...")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
