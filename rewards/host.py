"""All that rewards take from ComfyUI: where weights lie, CLIP's vocabulary and names, and devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from torch import nn

FOLDER = "reward_models"
_SUFFIXES = {".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt"}
_CONFIG = "config.json"
_IMAGE_MEMORY = 64 * 2**20
"""Bytes that one image takes on its way through ViT-H at 224 pixels in float32, with room to spare."""
_LARGEST_BATCH = 32

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def weights() -> list[str]:
    """Weights under the host's `reward_models` folders: files, and Hugging Face folders (with config.json) by name."""
    listed = (Path(name) for name in folder_paths.get_filename_list(FOLDER))
    files = [name for name in listed if not name.name.startswith("._")]  # macOS's notes, on other systems' disks
    folders = {name.parent for name in files if name.name == _CONFIG and name.parent.name}
    inside = {name for name in files if not folders.isdisjoint(name.parents)}
    return sorted(str(n) for n in [*folders, *(n for n in files if n.suffix.lower() in _SUFFIXES and n not in inside)])


def path_of(name: str) -> Path | None:
    """Where an entry of `weights()` lies; None if it is not (or no longer) there."""
    file = folder_paths.get_full_path(FOLDER, name)
    config = folder_paths.get_full_path(FOLDER, str(Path(name) / _CONFIG))
    if file is not None:
        return Path(file)
    return None if config is None else Path(config).parent


def folder() -> str:
    """Where to put weights, to be read in a message."""
    return folder_paths.get_folder_paths(FOLDER)[0]


def clip_vocabulary() -> Path:
    """The folder with the tokenizer that all of OpenAI's and LAION's CLIPs share; it comes with ComfyUI."""
    return Path(comfy.model_management.__file__).with_name("sd1_tokenizer")


def clip_in_transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a CLIP of open_clip, image and text, as transformers calls and cuts them."""
    state = comfy.clip_vision.convert_to_transformers(state, "visual.")
    return comfy.utils.clip_text_transformers_convert(state, "", "")


class RewardModel(nn.Module):
    """Holds a module of transformers, whose own `device` the host could not set."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Managed:
    """A module that the host loads where it wants it, and unloads when it needs the memory for another.

    It is used in float32, in which scores are published, and its weights are frozen.
    """

    def __init__(self, module: nn.Module, image_memory: int = _IMAGE_MEMORY) -> None:
        """`module` was made outside of inference mode if gradients pass through it; `image_memory` is what one image
        takes on its way, in bytes."""
        self.module = module.float().eval().requires_grad_(False)
        self._image_memory = image_memory
        # As the host does with CLIP vision models: the CPU in its low-memory modes, which only know its own layers.
        self.device: torch.device = comfy.model_management.text_encoder_device()
        self._patcher = comfy.model_patcher.ModelPatcher(
            RewardModel(self.module),
            load_device=self.device,
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def batches(self, count: int, image_memory: int | None = None) -> Iterator[slice]:
        """Slices of `count` images, as many at once as memory allows; the module is on `device` for each of them.

        Args:
            count: of images.
            image_memory: bytes that one of them takes; None = what the module was made with.

        Raises:
            comfy's InterruptProcessingException: the user pressed Cancel.
        """
        each = image_memory or self._image_memory
        start = 0
        while start < count:
            comfy.model_management.throw_exception_if_processing_interrupted()
            wanted = min(count - start, _LARGEST_BATCH)
            # Weights that were moved in inference mode, in which the host runs nodes, could not pass on a gradient.
            with torch.inference_mode(False):
                comfy.model_management.load_models_gpu(
                    [self._patcher], memory_required=wanted * each, force_full_load=True
                )
            free = comfy.model_management.get_free_memory(self.device)
            size = max(1, min(wanted, int(free // each)))
            yield slice(start, start + size)
            start += size
