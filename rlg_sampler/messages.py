"""How messages call a model and list names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def model_name(patcher: ModelPatcher) -> str:
    """The family as the host detected it (SD3, SDXL, Flux, ...), which users know better than class names."""
    return type(patcher.model.model_config).__name__


def name_list(names: Sequence[str], most: int) -> str:
    """The first `most` of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shown(text: object, most: int = 80) -> str:
    """What a file says, fit for a message: on one line, and not longer than `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: most + 1]).split())
    return line if len(str(text)) <= most else f"{line[:most]}…"
