"""Hooks on conds (LoRAs that act on one prompt), whose keyframes the host counts by evaluations of a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import comfy.samplers

from .prediction import Evaluation

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

Conds = dict[str, list[dict[str, Any]]]


def give_own_hooks(conds: Conds) -> None:
    """Copies of cond hooks for another model: a keyframe that one model has passed would be lost to the other."""
    groups: dict[int, Any] = {}
    keyframes: dict[int, Any] = {}
    for cond in _hooked(conds):
        group = cond["hooks"]
        if id(group) not in groups:
            groups[id(group)] = group.clone()
            for hook in groups[id(group)].hooks:
                shared = hook.hook_keyframe
                hook.hook_keyframe = keyframes.setdefault(id(shared), shared.clone())
        cond["hooks"] = groups[id(group)]


def pass_keyframes(model: BaseModel, conds: Conds, cfg: float, evaluation: Evaluation) -> None:
    """Count an evaluation, also where the model need not be evaluated: at its scale, or as another run has done it.

    One noise level counts once, however often it is told. What the host itself leaves out is not counted: the negative
    prompt at CFG 1, and default conds, which act only where others leave room.
    """
    spared = math.isclose(cfg, 1.0) and not evaluation.options.get("disable_cfg1_optimization", False)
    counted = {name: of_name for name, of_name in conds.items() if not (spared and name == "negative")}
    for cond in _hooked(counted):
        if (
            not cond.get("default")
            and comfy.samplers.get_area_and_mult(cond, evaluation.x, evaluation.sigma) is not None
        ):
            model.current_patcher.prepare_hook_patches_current_keyframe(
                evaluation.sigma, cond["hooks"], evaluation.options
            )


def _hooked(conds: Conds) -> list[dict[str, Any]]:
    return [cond for of_name in conds.values() for cond in of_name if cond.get("hooks") is not None]
