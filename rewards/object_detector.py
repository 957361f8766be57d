"""COCO's objects in a picture, by the detector that GenEval uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from . import host
from .weights import from_transformers

_IMAGE_MEMORY = 2**30
"""Bytes that one image takes on its way through Mask2Former at 800 pixels in float32, with room to spare."""
_MOST_FOUND = 100
_UNUSED = ("criterion.", "relative_position_index")
"""The loss, which only training takes, and what earlier versions of transformers saved beside the weights."""


@dataclass(frozen=True)
class Found:
    """An object in a picture.

    Attributes:
        box: left, top, right, bottom in pixels; right and bottom are the first outside.
        score: how sure the detector is, 0 … 1.
        mask: (height, width) bool, the pixels that it takes.
    """

    box: tuple[int, int, int, int]
    score: float
    mask: np.ndarray


class ObjectDetector:
    """Mask2Former (arXiv 2112.01527) trained on COCO's instances, as transformers builds it.

    GenEval and Flow-GRPO use the same network with the same backbone from MMDetection, which nothing here installs.
    A detector that takes words (OWLv2, Grounding DINO) would find objects beyond COCO, but gives other confidences:
    GenEval's thresholds would mean something else.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Args:
            path: a Hugging Face folder, with its preprocessor_config.json.
            names: of the classes, in the order of the model's outputs.

        Raises:
            ValueError: it cannot be read, or holds another model or other classes.
        """
        from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

        self._names = tuple(names)
        self._model = from_transformers(Mask2FormerForUniversalSegmentation, path, unused=_UNUSED)
        if self._model.config.num_labels != len(self._names):
            raise ValueError(
                f"file: '{path.name}' finds {self._model.config.num_labels} kinds of objects instead of COCO's "
                f"{len(self._names)}; take a model of COCO instances."
            )
        try:
            self._processor = Mask2FormerImageProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"file: '{path.name}' lacks preprocessor_config.json; download the whole folder again."
            ) from error
        self.managed = host.Managed(self._model, _IMAGE_MEMORY)

    @torch.inference_mode()
    def find(self, pictures: Sequence[Image.Image], least: float) -> list[dict[str, list[Found]]]:
        """Of each picture, what there is of each class with a score above `least`, surest first."""
        return [
            self._in_one(picture, least) for part in self.managed.batches(len(pictures)) for picture in pictures[part]
        ]

    def _in_one(self, picture: Image.Image, least: float) -> dict[str, list[Found]]:
        prepared = self._processor(images=[picture], return_tensors="pt").to(self.managed.device)
        output = self._model(pixel_values=prepared.pixel_values, pixel_mask=prepared.pixel_mask)
        classes = output.class_queries_logits[0].softmax(-1)[:, :-1]  # (queries, classes); the last is "nothing"
        sure, places = classes.flatten().topk(min(_MOST_FOUND, classes.numel()))
        sure, places = sure[sure > least], places[sure > least]  # the mask can only make it less sure
        queries, labels = places // classes.shape[1], places % classes.shape[1]
        logits = _at_picture_size(output.masks_queries_logits[:, queries], prepared, picture)[0]
        masks = logits > 0
        inside = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
        scores = (sure * inside).tolist()
        found: dict[str, list[Found]] = {}
        for row in sorted(range(len(scores)), key=lambda row: -scores[row]):
            if scores[row] > least:
                mask = masks[row].cpu().numpy()
                found.setdefault(self._names[labels[row]], []).append(Found(_box(mask), scores[row], mask))
        return found


def _at_picture_size(masks: torch.Tensor, prepared: dict, picture: Image.Image) -> torch.Tensor:
    """(1, objects, height, width) of the picture, from the masks of the resized and padded one."""
    if not masks.shape[1]:
        return masks.new_zeros(1, 0, picture.height, picture.width)
    seen = prepared["pixel_mask"][0]
    height, width = int(seen.any(1).sum()), int(seen.any(0).sum())
    masks = interpolate(masks, seen.shape, mode="bilinear")[..., :height, :width]
    return interpolate(masks, (picture.height, picture.width), mode="bilinear")


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
