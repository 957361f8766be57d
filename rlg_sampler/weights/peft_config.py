"""What PEFT's `adapter_config.json` says about the strength of a LoRA.

A PEFT file has no alpha tensors: its scale is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rank-stabilised
LoRA, per module where `rank_pattern` / `alpha_pattern` say so (PEFT's `LoraLayer.update_layer`). A loader that
does not read it applies the adapter at a wrong strength without any sign of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import shown
from .name_patterns import NamePatterns

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_LARGEST = 3.4e38  # of float32


_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin a LoRA that take its beginning off the base weights."""


@dataclass(frozen=True)
class PeftConfig:
    """The part of a PEFT LoraConfig that decides the scale of each module."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: NamePatterns = field(default_factory=lambda: NamePatterns({}))
    alpha_pattern: NamePatterns = field(default_factory=lambda: NamePatterns({}))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> PeftConfig:
        """Read a LoraConfig's dictionary.

        Args:
            config: the decoded `adapter_config.json`.
            source: how an error names the file.

        Raises:
            ValueError: it is not a plain LoRA, or `r` / `lora_alpha` are missing or unusable.
        """
        peft_type = str(config.get("peft_type") or "LORA").upper()
        if peft_type != "LORA":
            raise ValueError(f"{source}: peft_type is {shown(peft_type)}; only LORA adapters can be loaded.")
        if config.get("use_dora"):
            raise ValueError(
                f"{source}: this adapter uses DoRA, which cannot be loaded exactly yet; "
                "merge it into the checkpoint and use the two checkpoints as a pair."
            )
        start = str(config.get("init_lora_weights")).lower()
        if start.startswith(_CHANGE_THE_BASE):
            raise ValueError(
                f"{source}: this adapter was trained with {shown(start)} on base weights that it changed itself; "
                "merge it into the checkpoint and use the two checkpoints as a pair, or save it as a plain LoRA (in "
                "PEFT by path_initial_model_for_weight_conversion)."
            )
        try:
            parsed = cls(
                r=_whole(config["r"]),
                lora_alpha=_number(config["lora_alpha"]),
                use_rslora=bool(config.get("use_rslora", False)),
                rank_pattern=_patterns(config.get("rank_pattern"), _whole),
                alpha_pattern=_patterns(config.get("alpha_pattern"), _number),
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{source}: r, lora_alpha or their patterns are missing or not numbers ({reason}); "
                "use the file that was saved with the adapter."
            ) from None
        if parsed.r <= 0:
            raise ValueError(
                f"{source}: r={parsed.r} and lora_alpha={parsed.lora_alpha} give no scale; "
                "use the file that was saved with the adapter."
            )
        return parsed

    @classmethod
    def from_file(cls, path: Path) -> PeftConfig:
        """Read `adapter_config.json`.

        Raises:
            ValueError: as `from_dict`, or the file is not JSON.
        """
        source = f"lora_name: {path.parent.name}/{path.name}"
        try:
            config = decoded(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: cannot be read as JSON ({shown(error, 200)}); download it again.") from None
        if not isinstance(config, dict):
            raise ValueError(f"{source}: holds no settings; download it again.")
        return cls.from_dict(config, source)

    def rank(self, module: str) -> int:
        """The rank that the config gives `module` (a name such as `transformer_blocks.0.attn.to_q`)."""
        return int(self.rank_pattern.value(module, self.r))

    def scale(self, module: str, rank: int) -> float:
        """What the trainer multiplied `lora_B @ lora_A` by, for a module of this rank."""
        alpha = self.alpha_pattern.value(module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def decoded(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit, with advice for programmers
        raise ValueError("a number in it has thousands of digits") from None


def _patterns(values: Any, checked: Callable[[Any], float]) -> NamePatterns:
    if not isinstance(values or {}, dict):
        raise TypeError("patterns are names and numbers")
    return NamePatterns({pattern: checked(value) for pattern, value in (values or {}).items()})


def _number(value: Any) -> float:
    """A number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise TypeError(f"{shown(value, 40)} is no finite number")
    return float(value)


def _whole(value: Any) -> int:
    if _number(value) != int(value):
        raise TypeError(f"{shown(value, 40)} is no whole number")
    return int(value)
