"""What RLG Grid puts out for the page: every cell once, whole and with its label, whatever the grid makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import folder_paths
import numpy as np
import torch
from PIL import Image

LABELS = ["switch 0.2, scale 1", "switch 0.2, scale 2", "switch 0.6, scale 1", "switch 0.6, scale 2"]


def test_cells_are_saved_once_with_their_labels(rlg: SimpleNamespace) -> None:
    """Also those with an alpha channel, as the host does in Preview Image."""
    cells = [torch.rand(24, 40, 3) for _ in range(3)] + [torch.rand(24, 40, 4)]
    output = rlg.nodes["RLGGrid"].execute(
        images=[torch.stack(cells[:3]), cells[3][None]], labels=LABELS, columns=[0], title=["sweep"]
    )
    assert output.ui["labels"] == LABELS
    files = [Path(folder_paths.get_temp_directory()) / image["filename"] for image in output.ui["images"]]
    assert len(set(files)) == len(cells) and {image["type"] for image in output.ui["images"]} == {"temp"}
    for file, cell in zip(files, cells, strict=True):
        saved = torch.from_numpy(np.asarray(Image.open(file)).copy()) / 255
        assert saved.shape == cell.shape and (saved - cell).abs().max() <= 1 / 255
    assert output.result[0].shape[0] == 1 and output.result[0].shape[-1] == 3  # alpha is left out


def test_cells_are_in_the_grid_as_a_saved_picture_holds_them(rlg: SimpleNamespace) -> None:
    """Cut off to 8 bits, as the host saves: what is shown is what is scored."""
    cell = torch.full((24, 40, 3), 100.9 / 255)
    (grid,) = rlg.nodes["RLGGrid"].execute(images=[cell[None]], labels=["a"], columns=[0], title=[""]).result
    values, counts = (grid[0] * 255).round().int()[..., 0].unique(return_counts=True)
    assert counts[values == 100].item() >= 24 * 40
