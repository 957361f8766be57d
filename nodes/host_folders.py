"""Names from a workflow, which may come from a stranger, as paths in ComfyUI's own folders."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST_NAME = 200
"""Bytes; file systems take 255, of which the host and we add some to a name."""


def inside(folder: str | Path, name: str) -> Path | None:
    """The path that `name` means in `folder`, with links followed.

    Returns:
        None where it leads out of the folder, can be no path, or has a control character, such as a line break.
    """
    root = Path(folder).resolve()
    try:
        path = (root / name).resolve()
        too_long = any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.relative_to(root).parts)
    except (OSError, RuntimeError, ValueError):  # links in a circle; a NUL, half a character, a way out
        return None
    return None if too_long or any(character < " " for character in name) else path
