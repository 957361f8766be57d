"""Modules that a tuned model changes and that a call of the model did not come to: there it stays the base."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor

from ..messages import name_list

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)

_SHOWN = 3
_told: WeakSet[ModelPatcher] = WeakSet()


def refuse_fused(names: Sequence[str]) -> None:
    """Refuse changes of modules that the host computes without their forward.

    Raises:
        ValueError: there are such.
    """
    if names:
        raise ValueError(
            f"tuned: ComfyUI computes {name_list(names, _SHOWN)} in fused int8 kernels, which leave no place for a "
            "change on the fly; load base in another precision, such as fp8 or bf16."
        )


def warn_of_missed(missed: Sequence[str], changed: int, tuned: ModelPatcher) -> None:
    """Say what had no effect in a whole run, once for each tuned MODEL: the cells of a sweep all lack the same.

    Args:
        missed: names of modules.
        changed: how many the tuned MODEL changes.
    """
    if not missed or tuned in _told:
        return
    _told.add(tuned)
    logger.warning(
        "RLG: the model ran without %d of the %d modules that tuned changes, so that part has no effect: %s.",
        len(missed), changed, name_list(missed, _SHOWN),
    )  # fmt: skip


def may_be_fused(model: torch.nn.Module, name: str) -> bool:
    """Whether a module around this one may hand its weight to `comfy.ops.linear_input_act` (newer hosts)."""
    weight = comfy.utils.get_attr(model, name).weight
    if not isinstance(weight, QuantizedTensor) or getattr(weight, "_layout_cls", "") != "TensorWiseINT8Layout":
        return False
    around = [comfy.utils.get_attr(model, name.rsplit(".", levels)[0]) for levels in (1, 2)]
    return any("linear_input_act" in type(module).forward.__code__.co_names for module in around)
