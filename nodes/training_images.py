"""Real pictures to train on, with what they show as prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
from comfy_api.v0_0_2 import io

from ..files.captioned import captioned, check_captioned
from ..rewards.pixels import to_image
from ..rlg_sampler.messages import shown
from ..training.policy.room import check_room
from .host_folders import inside
from .inputs import answer
from .search import search_aliases
from .training_inputs import size_input

_BYTE, _FLOAT = 1, 4
"""Of a channel of a pixel, as it is read and as an IMAGE holds it."""


class RLGLoadImages(io.ComfyNode):
    """The pictures of a folder as one batch, with their captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGLoadImages",
            display_name="RLG Load Images",
            category="RLG/training",
            description="The pictures of a folder with their captions, for training methods that learn from real "
            "pictures: images for RLG ReFL, RLG SRPO or RLG DDPO, prompts for RLG Train LoRA.",
            **search_aliases("image folder", "dataset", "captions", "load images from folder", "imagerefl"),
            inputs=[
                io.String.Input(
                    "folder",
                    default="pictures",
                    tooltip="A folder in ComfyUI's input folder, with a .txt of the same name beside each picture. "
                    "Or one scale's folder of RLG Save Set, copied there.",
                ),
                size_input(
                    "width",
                    "Of the pictures, in pixels: as in RLG Train LoRA. What is wider is cut off at both sides.",
                ),
                size_input(
                    "height",
                    "Of the pictures, in pixels: as in RLG Train LoRA. What is higher is cut off at both ends.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All pictures, in the order of their names."),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="Their captions, in the same order."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """Are the pictures there, and captions beside them? What these say is read once it runs."""
        return answer(lambda name: check_captioned(_folder(name)), folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: Any) -> Any:
        if folder is None:  # it comes through a link, and is not known yet
            return None
        files = ((path.name, path.stat()) for path in _folder(folder).iterdir())
        return sorted((name, status.st_mtime_ns, status.st_size) for name, status in files)

    @classmethod
    def execute(cls, folder: str, width: int, height: int) -> io.NodeOutput:
        found = captioned(_folder(folder))
        check_pictures("folder", len(found), width, height)
        images = to_image(np.stack([one.pixels(width, height) for one in found]))
        return io.NodeOutput(images, [one.caption for one in found])


def check_pictures(name: str, count: int, width: int, height: int) -> None:
    """Raises ValueError where so many pictures do not fit.

    Args:
        name: of the user's input.
        count: of pictures.
        width, height: of each.
    """
    size = 3 * width * height * (_BYTE + _FLOAT)
    check_room(f"{name}: {count} pictures of {width} × {height}", count, size, otherwise=", or make them smaller")


def _folder(name: str) -> Path:
    root = folder_paths.get_input_directory()
    path = inside(root, name.strip())
    if path is None or not path.is_dir():
        raise ValueError(
            f"folder: there is no '{shown(name)}' in {root}; put a folder of pictures there and write its name."
        )
    return path
