"""All that rewards take from ComfyUI: where weights lie, and devices."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

FOLDER = "reward_models"
_SUFFIXES = {".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt"}
_CONFIG = "config.json"

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def weights() -> list[str]:
    """Weights under the host's `reward_models` folders: files, and Hugging Face folders (with config.json) by name."""
    files = [Path(name) for name in folder_paths.get_filename_list(FOLDER)]
    folders = {name.parent for name in files if name.name == _CONFIG and name.parent.name}
    inside = {name for name in files if not folders.isdisjoint(name.parents)}
    return sorted(str(n) for n in [*folders, *(n for n in files if n.suffix.lower() in _SUFFIXES and n not in inside)])


def path_of(name: str) -> Path | None:
    """Where an entry of `weights()` lies; None if it is not (or no longer) there."""
    found = folder_paths.get_full_path(FOLDER, name) or folder_paths.get_full_path(FOLDER, str(Path(name) / _CONFIG))
    if found is None:
        return None
    return Path(found) if Path(found).name != _CONFIG else Path(found).parent


def folder() -> str:
    """Where to put weights, to be read in a message."""
    return folder_paths.get_folder_paths(FOLDER)[0]
