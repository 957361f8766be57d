"""What bundled workflows read beside checkpoints and LoRAs, small, in the folders of a ComfyUI."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from demo.trained_pair import network
from tiny_rewards import write_pickscore

TUNED = "dpo-sdxl-text2image-v1.safetensors"
"""The file of a tuned model that a workflow names."""


def write_workflow_files(base: Path) -> None:
    """Pictures with captions, a reward with a gradient that any workflow may take, and a tuned model without a LoRA.

    Args:
        base: the folder with ComfyUI's `input` and `models`.
    """
    pictures = base / "input" / "pictures"
    pictures.mkdir(parents=True)
    for name, colour in (("cat", (210, 120, 40)), ("sea", (30, 90, 160))):
        Image.new("RGB", (96, 80), colour).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a picture of a {name}", encoding="utf-8")
    rewards = base / "models" / "reward_models"
    rewards.mkdir(parents=True)
    write_pickscore(rewards)
    tuned = base / "models" / "diffusion_models" / TUNED
    tuned.parent.mkdir()
    save_file(_tuned_network(), tuned)


def _tuned_network() -> dict[str, Tensor]:
    """The demo's base model with other queries, keys and values, and nothing beside the network itself."""
    return {name: 1.05 * tensor if "qkv" in name else tensor for name, tensor in network().items()}
