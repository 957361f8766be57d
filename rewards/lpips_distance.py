"""LPIPS by its authors' package, with AlexNet's weights from a local file."""

from __future__ import annotations

from pathlib import Path

import torch

from . import host
from .weights import check, read

_FEATURES = "features."
_BYTES_PER_PIXEL = 300
"""Of a pair: both pictures, both scaled, and for all five layers the features of both and their differences."""


class LpipsDistance:
    """LPIPS v0.1 on AlexNet (arXiv 1801.03924): how different two images look, 0 and up."""

    def __init__(self, path: Path) -> None:
        """Args:
            path: torchvision's AlexNet. The package brings what LPIPS adds to it.

        Raises:
            ValueError: the package is not there, or the file holds another model.
        """
        try:
            import lpips
        except ImportError as error:
            raise ValueError(
                f"measure: lpips needs a Python package that is not installed ({error.name}); install it in ComfyUI's "
                "environment: pip install lpips."
            ) from error
        # pnet_rand: else the package downloads AlexNet.
        self._model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        state = {key.removeprefix(_FEATURES): v for key, v in read(path).items() if key.startswith(_FEATURES)}
        # The package keeps AlexNet's layers in slices, under their own numbers.
        own = {".".join(key.split(".")[1:]): value for key, value in self._model.net.state_dict().items()}
        shared = own.keys() & state.keys()
        check(path, own.keys() - shared, state.keys() - shared, (k for k in shared if own[k].shape != state[k].shape))
        for key in shared:
            own[key].copy_(state[key])
        self._managed = host.Managed(self._model)

    @torch.inference_mode()
    def pairwise(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, batch) float32 on the CPU, of images (batch, height, width, 3) from 0 to 1."""
        pixels = images[..., :3].movedim(-1, 1).float() * 2 - 1
        first, second = torch.triu_indices(len(images), len(images), offset=1)
        found = [torch.zeros(0)]
        of_pair = _BYTES_PER_PIXEL * pixels.shape[-2] * pixels.shape[-1]
        for part in self._managed.batches(len(first), of_pair):
            one, two = (pixels[rows[part]].to(self._managed.device) for rows in (first, second))
            found.append(self._model(one, two).flatten().cpu())
        distances = torch.zeros(len(images), len(images))
        distances[first, second] = torch.cat(found)
        return distances + distances.T
