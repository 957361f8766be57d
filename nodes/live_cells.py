"""Cells of a sweep, or branches, on the page as each is done: small and quick, long before the exact pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import latent_preview
import torch
from comfy.model_patcher import ModelPatcher

from . import page

EVENT = "rlg_cells"
"""The message of the server that `web/sweep_viewer.js` listens to."""
_LARGEST = 256
"""Side of a preview in pixels; it travels to the page as text."""


class LiveCells:
    """Tells the page which cells are done: of a sweep, or the branches of one beginning.

    Args:
        model: the MODEL that samples.
        labels: of all pictures, a cell's next to each other.
        pictures: how many a cell has.
    """

    def __init__(self, model: ModelPatcher, labels: Sequence[str], pictures: int) -> None:
        self._node, self._labels, self._pictures = page.running_node(), list(labels), pictures
        self._format = model.model.latent_format
        self._previewer = _previewer(model)
        self._begins = True

    def __call__(self, cells: Sequence[int], samples: torch.Tensor) -> None:
        """Cells with these numbers are done.

        Args:
            samples: what all of them gave, shape (batch, channels, ...).
        """
        if self._node is None or self._previewer is None:
            return
        previews = [self._preview(picture[None]) for picture in self._format.process_in(samples)]
        numbers = {cell * self._pictures + n: preview for cell in cells for n, preview in enumerate(previews)}
        page.send(EVENT, {"node": self._node, "begins": self._begins, "labels": self._labels, "pictures": numbers})
        self._begins = False

    def _preview(self, latent: torch.Tensor) -> str:
        """A JPEG as an address."""
        picture = self._previewer.decode_latent_to_preview(latent)
        picture.thumbnail((_LARGEST, _LARGEST))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _previewer(model: ModelPatcher) -> latent_preview.LatentPreviewer | None:
    """Latents as colours: they cost nothing to speak of, and need nothing on the GPU as the host's decoders do."""
    latents = model.model.latent_format
    if latents.latent_rgb_factors is None:
        return None
    return latent_preview.Latent2RGBPreviewer(
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
    )
