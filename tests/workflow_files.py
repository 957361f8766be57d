"""What bundled workflows read beside checkpoints and LoRAs, small, in the folders of a ComfyUI."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tiny_rewards import write_pickscore


def write_workflow_files(base: Path) -> None:
    """Pictures with captions, and a reward with a gradient that any workflow may take.

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
