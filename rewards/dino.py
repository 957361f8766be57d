"""DINO and DINOv2 as transformers builds them."""

from __future__ import annotations

from pathlib import Path

import torch

from . import host
from .pixels import IMAGENET_MEAN, IMAGENET_STD, cropped
from .weights import from_transformers

_SIDE, _SHORTER = 224, 256
"""In pixels, as the published evaluation prepares images."""


class Dino:
    """Unit vectors of images: the class token of DINO (arXiv 2104.14294) or DINOv2 (arXiv 2304.07193)."""

    def __init__(self, path: Path) -> None:
        """Args:
            path: a Hugging Face folder.

        Raises:
            ValueError: it cannot be read or holds another model.
        """
        from transformers import AutoConfig, Dinov2Model, ViTModel

        classes = {"dinov2": (Dinov2Model, {}), "vit": (ViTModel, {"add_pooling_layer": False})}
        try:
            kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
        except (OSError, ValueError) as error:
            raise ValueError(f"file: '{path.name}' is no folder of DINO: its config.json cannot be read.") from error
        if kind not in classes:
            raise ValueError(f"file: '{path.name}' holds another model ({kind}); take a folder of DINO or DINOv2.")
        model, options = classes[kind]
        self._model = from_transformers(model, path, unused=("pooler.",), **options)
        self._managed = host.Managed(self._model)

    @torch.inference_mode()
    def images(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, width) float32 on the CPU, each of length 1."""
        found = [torch.zeros(0, self._model.config.hidden_size)]
        for part in self._managed.batches(len(images)):
            pixels = cropped(images[part], _SIDE, "torchvision", _SHORTER, IMAGENET_MEAN, IMAGENET_STD)
            found.append(self._model(pixels.to(self._managed.device)).last_hidden_state[:, 0].cpu())
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)
