"""Empty files for the models that a workflow names: a list of files shows them, and nothing can load them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_empty_models(models: Path, prompts: Iterable[Mapping[str, Mapping[str, Any]]]) -> None:
    """In a folder laid out as ComfyUI's `models`: models as files, LoRAs as the folders of PEFT adapters."""
    for node in (node for prompt in prompts for node in prompt.values()):
        for name, kind in (("ckpt_name", "checkpoints"), ("unet_name", "diffusion_models")):
            if name in node["inputs"]:
                _touch(models / kind / node["inputs"][name])
        if "lora_name" in node["inputs"]:
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                _touch(models / "loras" / node["inputs"]["lora_name"] / name)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
