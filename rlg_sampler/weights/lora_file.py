"""LoRA files → weight patches of the host, at the strength their trainer meant.

The host maps keys and applies patches; this module adds what it leaves out: the scale that PEFT keeps in
`adapter_config.json`, and the refusal to go on when a file does not belong to the model.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from comfy.weight_adapter import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter

from ..messages import model_name, name_list, shown
from .lora_checks import Target, check_patches, check_tensors
from .patch_difference import patch_difference
from .peft_config import CONFIG_NAME, WEIGHTS_NAME, PeftConfig, decoded

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

# PEFT puts the adapter's name between lora_A and weight when a model was saved without its own save method. Scripts of
# diffusers have lora.down and lora.up.
_PEFT_KEY = re.compile(
    r"^(?P<module>.+)\.lora(?:_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?|\.(?P<direction>down|up))\.weight$"
)
_SIDES = {"down": "A", "up": "B"}
_PEFT_PREFIX = "base_model.model."
# Of the modules in diffusers' own LoRA files.
_DIFFUSERS_PREFIXES = ("transformer.", "unet.")
# Suffixes that the host reads besides the matrices its adapter classes claim.
_PLAIN_SUFFIXES = (".diff", ".diff_b", ".set_weight", ".w_norm", ".b_norm")
_TEXT_ENCODER_PREFIXES = ("lora_te", "text_encoder", "text_model", "base_model.model.text_model", "clip_")
_SHOWN_KEYS = 8
_LONGEST_REASON = 200


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read from disk.

    Attributes:
        name: how messages name it.
        weights: the tensors, PEFT modules already carrying an `.alpha` that makes the host apply their scale.
        scale_source: where that scale came from, for the report.
    """

    name: str
    weights: StateDict
    scale_source: str


def load_lora(model: ModelPatcher, path: Path, name: str, strength: float) -> tuple[ModelPatcher, str]:
    """Put a LoRA on a clone of `model`.

    Args:
        model: the MODEL to tune; it is left as it is.
        path: the LoRA file (for a PEFT folder, its `adapter_model.safetensors`).
        name: how messages name it.
        strength: 1.0 means what the trainer meant.

    Returns:
        The clone with the weight patches, and a one-paragraph report of what was matched and what was left out.

    Raises:
        ValueError: the file cannot be read, has no known scale, does not fit the model's shapes, or no key matches.
    """
    lora = read_lora(path, name)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    weights, patches = _host_patches(_rename_peft_modules(lora.weights, key_map), key_map, name)
    family = model_name(model)
    if not patches:
        raise ValueError(
            f"lora_name: none of the {len(lora.weights)} keys in '{name}' match this model ({family}); the file "
            f"starts with {', '.join(map(shown, list(lora.weights)[:3]))}. Choose a LoRA that was trained for {family}."
        )
    check_patches(patches, model, name)
    tuned = model.clone()
    tuned.add_patches(patches, strength)
    left_out = _left_out(weights, patches, key_map)
    report = _report(lora, patches, left_out, family, strength)
    changes_nothing = not patch_difference(model.patches, tuned.patches)
    if changes_nothing:
        reason = "its strength is 0" if strength == 0 else "its matrices are zero, as before any training"
        report += f" It changes nothing: {reason}."
    if left_out or changes_nothing:
        logger.warning("RLG: %s", report)
    return tuned, report


def read_lora(path: Path, name: str) -> LoraFile:
    """Read a LoRA file; PEFT adapters get the scale of their config as alpha tensors.

    Raises:
        ValueError: the file is damaged, or it is a PEFT adapter whose config is missing or contradicts it.
    """
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # the host, safetensors and torch each raise their own kinds
        reason = shown(error, _LONGEST_REASON) or type(error).__name__
        raise ValueError(f"lora_name: '{name}' cannot be read ({reason}); download the file again.") from error
    if not isinstance(weights, dict):
        raise ValueError(f"lora_name: '{name}' holds no named tensors; download the file again.")
    weights = {k: v for k, v in weights.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    check_tensors(weights, name)
    if os.name == "nt":  # they are views of the file, and training could not replace a file that is in use there
        weights = {key: weight.clone() for key, weight in weights.items()}
    modules = _peft_modules(weights, name)
    without_alpha = {m: keys for m, keys in modules.items() if f"{m}.alpha" not in weights}
    if not without_alpha:
        has_alpha = any(key.endswith(".alpha") for key in weights)
        return LoraFile(name, weights, "alpha tensors in the file" if has_alpha else "no alpha in the file")
    saved_by_peft = path.name == WEIGHTS_NAME or any(m.startswith(_PEFT_PREFIX) for m in modules)
    # Beside another file it is another adapter's: diffusers and most trainers keep the scale inside.
    config, source = _find_config(path, metadata or {}, name, look_beside=saved_by_peft)
    if config is None and saved_by_peft:
        raise ValueError(
            f"lora_name: '{name}' is a PEFT adapter without its {CONFIG_NAME}, so its strength (lora_alpha / r) is "
            f"unknown; put the {CONFIG_NAME} that was saved with it into the folder {path.parent.name}."
        )
    if config is None and _would_change({m: weights[keys["A"]] for m, keys in without_alpha.items()}, path):
        source += (
            f", without the {CONFIG_NAME} beside it, which is for files that PEFT saved: if this is one, rename it to "
            f"{WEIGHTS_NAME}"
        )
    renamed = {k: v for k, v in weights.items() if not _PEFT_KEY.match(k)}
    for module, keys in modules.items():
        down, up = weights[keys["A"]], weights[keys["B"]]
        renamed[f"{module}.lora_A.weight"], renamed[f"{module}.lora_B.weight"] = down, up
        # A text encoder's part, which is left out, has a config of its own.
        if config is not None and module in without_alpha and not module.startswith(_TEXT_ENCODER_PREFIXES):
            renamed[f"{module}.alpha"] = _alpha_tensor(config, module.removeprefix(_PEFT_PREFIX), down, source)
    return LoraFile(name, renamed, source)


def _peft_modules(weights: StateDict, name: str) -> dict[str, dict[str, str]]:
    """module → {"A": key, "B": key} for every PEFT-style pair of matrices."""
    modules: dict[str, dict[str, str]] = {}
    adapters: set[str] = set()
    for key in weights:
        if match := _PEFT_KEY.match(key):
            modules.setdefault(match["module"], {})[match["side"] or _SIDES[match["direction"]]] = key
            adapters.add(match["adapter"] or "")
    if len(adapters) > 1:
        held = name_list([shown(adapter) for adapter in sorted(adapters)], _SHOWN_KEYS)
        raise ValueError(f"lora_name: '{name}' holds several adapters ({held}); save the one you want alone.")
    for module, keys in modules.items():
        if keys.keys() != {"A", "B"}:
            missing = ({"A", "B"} - keys.keys()).pop()
            raise ValueError(f"lora_name: '{name}' has no lora_{missing} for {shown(module)}; download the file again.")
    return modules


def _find_config(
    path: Path, metadata: Mapping[str, str], name: str, look_beside: bool
) -> tuple[PeftConfig | None, str]:
    beside = path.with_name(CONFIG_NAME)
    if look_beside and beside.is_file():
        return PeftConfig.from_file(beside), CONFIG_NAME
    if "lora_adapter_metadata" in metadata:  # where diffusers' save_lora_weights keeps the LoraConfig
        source = f"metadata of '{name}'"
        try:
            stored = decoded(metadata["lora_adapter_metadata"])
            settings = stored.items() if isinstance(stored, dict) else ()
        except ValueError as error:
            raise ValueError(f"lora_name: the {source} is damaged ({error}); download the file again.") from None
        config = {k.removeprefix(p): v for k, v in settings for p in _DIFFUSERS_PREFIXES if k.startswith(p)}
        if not config and "r" in (of_model := dict(settings)):  # save_lora_adapter writes one without a prefix
            config = of_model
        if config:
            return PeftConfig.from_dict(config, f"lora_name: {source}"), source
    return None, "no alpha in the file: scale 1"


def _would_change(downs: StateDict, path: Path) -> bool:
    """Whether the config beside a file fits these `lora_A` of modules, and gives them another scale than 1."""
    try:
        config = PeftConfig.from_file(path.with_name(CONFIG_NAME))
    except ValueError:  # there is none, or not one that could be meant
        return False
    ranks = {module: down.shape[0] if down.ndim else 0 for module, down in downs.items()}
    fits = all(rank == config.rank(module) > 0 for module, rank in ranks.items())
    return fits and any(config.scale(module, rank) != 1.0 for module, rank in ranks.items())


def _alpha_tensor(config: PeftConfig, module: str, down: torch.Tensor, source: str) -> torch.Tensor:
    rank = down.shape[0] if down.ndim else 0
    if config.rank(module) != rank:
        raise ValueError(
            f"lora_name: {source} gives {shown(module)} rank {config.rank(module)}, but the file's matrices have rank "
            f"{rank}; use the config that was saved with this file."
        )
    # The host multiplies by alpha / rank, so this alpha yields exactly the trainer's scale.
    return torch.tensor(config.scale(module, rank) * rank, dtype=torch.float64)


def _host_patches(
    weights: StateDict, key_map: Mapping[str, Target], name: str
) -> tuple[StateDict, Mapping[Target, Any]]:
    """The tensors by the names that the host gives them, and the patches that it makes of them."""
    try:
        weights = comfy.lora_convert.convert_lora(weights)
        return weights, comfy.lora.load_lora(weights, key_map, log_missing=False)
    except Exception as error:  # of any kind: the host takes the file to be complete
        reason = f"{type(error).__name__}: {shown(error, _LONGEST_REASON)}"
        raise ValueError(
            f"lora_name: '{name}' is damaged: ComfyUI cannot read its modules ({reason}); download the file again."
        ) from error


def _rename_peft_modules(weights: StateDict, key_map: Mapping[str, Target]) -> StateDict:
    """Give modules that the host does not know by this name the one it does."""
    names: dict[str, str] = {}
    renamed: StateDict = {}
    for key, tensor in weights.items():
        module, dot, suffix = key.rpartition(".lora_") if ".lora_" in key else key.rpartition(".")
        if module not in names:
            names[module] = next((c for c in _host_names(module) if c in key_map), module)
        renamed[names[module] + dot + suffix] = tensor
    return renamed


def _host_names(module: str) -> tuple[str, ...]:
    bare = module.removeprefix(_PEFT_PREFIX)
    return (
        module,
        f"{_PEFT_PREFIX}{bare}",
        f"transformer.{bare}",
        bare,
        f"diffusion_model.{bare}",
        f"lora_unet_{bare.removeprefix('unet.').replace('.', '_')}",
    )


def _left_out(weights: StateDict, patches: Mapping[Target, Any], key_map: Mapping[str, Target]) -> list[str]:
    used: set[str] = set()
    for patch in patches.values():
        if isinstance(patch, WeightAdapterBase):
            used |= patch.loaded_keys
    used |= {k for k in weights for s in _PLAIN_SUFFIXES if k.endswith(s) and k.removesuffix(s) in key_map}
    return sorted(weights.keys() - used)


def _report(lora: LoraFile, patches: Mapping[Target, Any], left_out: list[str], family: str, strength: float) -> str:
    ranks, alphas, scales = set(), set(), set()
    for patch in patches.values():
        if isinstance(patch, LoRAAdapter):
            rank, alpha = patch.weights[1].shape[0], patch.weights[2]
            ranks.add(rank)
            alphas.add(rank if alpha is None else alpha)
            scales.add(1.0 if alpha is None else alpha / rank)
    # As the log of a run counts them: q, k and v of one fused layer are one module.
    modules = {(target if isinstance(target, str) else target[0]).rpartition(".")[0] for target in patches}
    lines = [f"{lora.name}: {len(modules)} modules of {family} matched, strength {strength:g}"]
    if ranks:
        lines.append(f"rank {_spread(ranks)}, alpha {_spread(alphas)}, scale {_spread(scales)} ({lora.scale_source})")
    of_text = [key for key in left_out if key.startswith(_TEXT_ENCODER_PREFIXES)]
    if rest := [key for key in left_out if key not in of_text]:
        lines.append(f"left out, because this model has no place for them, {len(rest)} keys: {_keys(rest)}")
    if of_text:
        lines.append(
            f"left out, because base and tuned model share the prompt, {len(of_text)} keys for the text encoder: "
            f"{_keys(of_text)}"
        )
    if not left_out:
        lines.append("nothing left out")
    return "; ".join(lines) + "."


def _keys(keys: list[str]) -> str:
    return name_list([shown(key) for key in keys], _SHOWN_KEYS)


def _spread(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}…{high:g}"
