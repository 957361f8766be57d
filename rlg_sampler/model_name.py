"""How messages call a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def model_name(patcher: ModelPatcher) -> str:
    """The family as the host detected it (SD3, SDXL, Flux, ...), which users know better than class names."""
    return type(patcher.model.model_config).__name__
