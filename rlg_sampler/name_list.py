"""How messages list many names."""

from __future__ import annotations

from collections.abc import Sequence


def name_list(names: Sequence[str], most: int) -> str:
    """The first `most` of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
