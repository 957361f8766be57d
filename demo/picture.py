"""The demo's pictures: those that a server made, and many of them as one."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from rlg_sampler.sweeps.grid import Layout, grid


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def sheet(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], labels: Sequence[str], own: Sequence[str] = ()
) -> Image.Image:
    """Equally large RGB pictures: `columns` stand above them, `labels` left of the rows, `own` at each, if any."""
    pictures = [picture for row in rows for picture in row]
    return grid(pictures, Layout(len(columns), "", list(columns), list(labels), list(own) or [""] * len(pictures)))
