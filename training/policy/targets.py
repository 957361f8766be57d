"""Which modules of a model a LoRA trains, and what they are called in its file.

Flow-GRPO and its kin train the attention projections. Names are diffusers' where the host knows them for the family,
since there q, k and v have LoRAs of their own, which the host's models often fuse into one weight, and since LoRAs
are exchanged under them. Other families keep the host's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.lora
import comfy.utils
import torch

from ...rlg_sampler.messages import model_name
from ...rlg_sampler.weights.deltas import can_be_changed
from ...rlg_sampler.weights.low_rank import is_conv

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_PROJECTION = r"to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out"
# Not MMDiT-X's second attention, `attn2`: Flow-GRPO's target modules, which PEFT matches as suffixes, leave it out.
_TRANSFORMER = re.compile(rf"transformer\.(?P<name>.+\.attn\.(?:{_PROJECTION}))")
_UNET = re.compile(rf".+\.attn[12]\.(?:{_PROJECTION})")
_IN_ATTENTION = re.compile(r"(?!.*modulation).*(attn|attention)[^.]*\.([^.]+\.)*[^.]+")


@dataclass(frozen=True)
class Target:
    """A module, or a part of a fused one, that gets a low-rank matrix pair.

    Attributes:
        name: in the LoRA's file.
        module: its name in the host's model.
        rows: (start, stop) of the module's outputs that are its own.
        inputs: its number of inputs.
    """

    name: str
    module: str
    rows: tuple[int, int]
    inputs: int

    @property
    def outputs(self) -> int:
        return self.rows[1] - self.rows[0]


def attention_projections(patcher: ModelPatcher) -> list[Target]:
    """The linear layers of a model's attention, in the order of their names.

    Raises:
        ValueError: there are none.
    """
    model = patcher.model
    weights = {key for key, _ in model.named_parameters()}
    known = {name: key for name, key in _known_names(model).items() if _weight(key) in weights}
    names = known or {module: key for module, key in _own_names(model).items() if can_be_changed(model, key)}
    targets = [_target(model, name, names[name]) for name in sorted(names)]
    if not targets:
        raise ValueError(
            f"model: no attention layers were found in it ({model_name(patcher)}), so there is nothing to train; load "
            "an image model such as SD3.5, Flux, SDXL or SD1.5."
        )
    return targets


def _known_names(model: torch.nn.Module) -> dict[str, str | tuple]:
    """diffusers' name → the host's weight, or (weight, (dimension, start, length), ...) where it is a part of one."""
    found = {}
    for name, key in comfy.lora.model_lora_keys_unet(model, {}).items():
        if match := _TRANSFORMER.fullmatch(name):
            found[match["name"]] = key
    for name, key in comfy.utils.unet_to_diffusers(model.model_config.unet_config).items():
        if name.endswith(".weight") and _UNET.fullmatch(name.removesuffix(".weight")):
            found[name.removesuffix(".weight")] = f"diffusion_model.{key}"
    return found


def _own_names(model: torch.nn.Module) -> dict[str, str]:
    modules = {name: module for name, module in model.named_modules() if name.startswith("diffusion_model.")}
    linear = (n for n, m in modules.items() if getattr(m, "weight", None) is not None and not is_conv(m))
    return {n.removeprefix("diffusion_model."): f"{n}.weight" for n in linear if _IN_ATTENTION.fullmatch(n)}


def _weight(key: str | tuple) -> str:
    return key if isinstance(key, str) else key[0]


def _target(model: torch.nn.Module, name: str, key: str | tuple) -> Target:
    module = _weight(key).removesuffix(".weight")
    outputs, inputs = comfy.utils.get_attr(model, module).weight.shape
    start, length = (0, outputs) if isinstance(key, str) else key[1][1:]
    return Target(name, module, (start, start + length), inputs)
