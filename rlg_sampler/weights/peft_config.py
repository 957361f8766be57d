"""What PEFT's `adapter_config.json` says about the strength of a LoRA.

A PEFT file has no alpha tensors: its scale is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rank-stabilised
LoRA, per module where `rank_pattern` / `alpha_pattern` say so (PEFT's `LoraLayer.update_layer`). A loader that
does not read it applies the adapter at a wrong strength without any sign of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"


@dataclass(frozen=True)
class PeftConfig:
    """The part of a PEFT LoraConfig that decides the scale of each module."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

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
            raise ValueError(f"{source}: peft_type is {peft_type}; only LORA adapters can be loaded.")
        if config.get("use_dora"):
            raise ValueError(
                f"{source}: this adapter uses DoRA, which cannot be loaded exactly yet; "
                "merge it into the checkpoint and use the two checkpoints as a pair."
            )
        try:
            parsed = cls(
                r=int(config["r"]),
                lora_alpha=float(config["lora_alpha"]),
                use_rslora=bool(config.get("use_rslora", False)),
                rank_pattern={k: int(v) for k, v in (config.get("rank_pattern") or {}).items()},
                alpha_pattern={k: float(v) for k, v in (config.get("alpha_pattern") or {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{source}: r, lora_alpha or their patterns are missing or not numbers ({error!r}); "
                "use the file that was saved with the adapter."
            ) from error
        if parsed.r <= 0 or not math.isfinite(parsed.lora_alpha):
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
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{source}: cannot be read as JSON ({error}); download it again.") from error
        if not isinstance(config, dict):
            raise ValueError(f"{source}: holds no settings; download it again.")
        return cls.from_dict(config, source)

    def rank(self, module: str) -> int:
        """The rank that the config gives `module` (a name such as `transformer_blocks.0.attn.to_q`)."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float:
        """The lora_alpha that the config gives `module`."""
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha)

    def scale(self, module: str, rank: int) -> float:
        """What the trainer multiplied `lora_B @ lora_A` by, for a module of this rank."""
        return self.alpha(module) / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # PEFT's get_pattern_key: a pattern is a regular expression for the end of the name, after a dot; first wins.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
