"""What a fully tuned model changes, as a LoRA: an approximation that needs no second set of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.lora
import torch

from ..messages import model_name
from .deltas import can_be_changed
from .pair import ModelPair
from .svd import Factors, low_rank_factors
from .unpatched_weight import unpatched_weight

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_PREFIX = "diffusion_model."
# Parameters that say how others are stored.
_STORAGE = ("scale_weight", "scale_input", "weight_scale", "input_scale", "pre_quant_scale")


@dataclass(frozen=True)
class ExtractedLora:
    """The LoRA and what it leaves out.

    Attributes:
        weights: tensors of the file in the host's generic names, float32 in main memory.
        modules: module → its factors.
        biases: how many were taken over, exactly.
        left_out: weight that no LoRA can hold → ‖change‖².
        family: what the host calls the model.
    """

    weights: dict[str, torch.Tensor]
    modules: Mapping[str, Factors]
    biases: int
    left_out: Mapping[str, float]
    family: str

    @property
    def captured(self) -> float:
        """Part of the whole change ‖tuned − base‖² of the modules' weights that the LoRA has."""
        return sum(f.captured * f.energy for f in self.modules.values()) / sum(f.energy for f in self.modules.values())

    def report(self, name: str) -> str:
        """What the file holds, a line for each module at the end.

        Args:
            name: of the file.
        """
        worst = sorted(self.modules.items(), key=lambda item: item[1].captured)[:3]
        lines = [
            f"{name}: an approximation of the tuned {self.family} by a LoRA",
            f"{len(self.modules)} modules, {self.captured:.2%} of the change of their weights captured, least in "
            + ", ".join(f"{module} ({factors.captured:.1%})" for module, factors in worst),
            f"{self.biases} biases, exactly",
        ]
        if self.left_out:
            lines.append(f"left out, since a LoRA cannot hold them, {len(self.left_out)}: {', '.join(self.left_out)}")
        each = [f"{m}: rank {f.rank}, {f.captured:.2%}" for m, f in self.modules.items()]
        return "; ".join(lines) + ".\n" + "\n".join(each)


def extract_lora(base: ModelPatcher, tuned: ModelPatcher, rank: int, done: Callable[[int, int], None]) -> ExtractedLora:
    """The LoRA whose product is next to tuned − base in every module.

    Args:
        base, tuned: two versions of one model, with whatever LoRAs they carry.
        rank: of each module's matrices at most.
        done: called with (weights done, weights in all) after each.

    Raises:
        ValueError: the two do not belong together, or nothing in them can be expressed as a LoRA.
    """
    ModelPair.from_models(base, tuned).check_differs()
    names = [f"{_PREFIX}{name}" for name, _ in base.model.diffusion_model.named_parameters()]
    keys = [key for key in names if not key.endswith(_STORAGE)]
    weights: dict[str, torch.Tensor] = {}
    modules: dict[str, Factors] = {}
    left_out: dict[str, float] = {}
    biases = 0
    for number, key in enumerate(keys, 1):
        of_base, of_tuned = (_patched(model, key, base.load_device) for model in (base, tuned))
        change = of_tuned - of_base
        module, _, kind = key.rpartition(".")
        if not change.any():
            pass
        elif not can_be_changed(base.model, key):
            left_out[key] = change.square().sum().item()
        elif kind == "bias":
            weights[f"{module}.diff_b"] = change.cpu()
            biases += 1
        else:
            factors = modules[module] = low_rank_factors(change.flatten(1), rank)
            weights |= _in_the_file(module, factors, change.shape)
        done(number, len(keys))
    if not modules:
        raise ValueError(
            "tuned: no linear or convolution layer of it differs from base, so there is nothing to extract."
        )
    return ExtractedLora(weights, modules, biases, left_out, model_name(base))


def _patched(model: ModelPatcher, key: str, device: torch.device) -> torch.Tensor:
    """A weight with the MODEL's patches, in float32."""
    return comfy.lora.calculate_weight(model.patches.get(key, []), unpatched_weight(model, key, device), key)


def _in_the_file(module: str, factors: Factors, shape: torch.Size) -> dict[str, torch.Tensor]:
    down = factors.down.reshape(factors.rank, *shape[1:])
    up = factors.up.reshape(shape[0], factors.rank, *[1] * (len(shape) - 2))
    return {
        f"{module}.lora_down.weight": down.contiguous().cpu(),
        f"{module}.lora_up.weight": up.contiguous().cpu(),
        f"{module}.alpha": torch.tensor(float(factors.rank)),  # scale 1
    }
