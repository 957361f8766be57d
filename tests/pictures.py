"""Pictures and labels for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import Image


def sweep_labels(switches: int, scales: int) -> list[str]:
    return [f"switch {w / 10}, scale {s}, seed 7" for w in range(switches) for s in range(scales)]


def pictures(count: int = 4, height: int = 28, width: int = 28, seed: int = 0) -> torch.Tensor:
    """An IMAGE of values that 8 bits can hold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, height, width, 3), generator=generator).float() / 255


def run_node_saved(run_node: Callable, images: torch.Tensor) -> list[np.ndarray]:
    import nodes as host_nodes

    written = host_nodes.PreviewImage().save_images(images)["ui"]["images"]
    temp = Path(folder_paths.get_temp_directory())
    return [np.array(Image.open(temp / file["subfolder"] / file["filename"]).convert("RGB")) for file in written]
