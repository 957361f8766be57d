"""MODEL, CLIP and VAE of a plan, from the host's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError, refusing
from evaluation.host import Extension
from evaluation.plan import ModelFiles


def model_paths(files: ModelFiles) -> dict[str, Path]:
    """Of each file, by its folder and name; those in models/checkpoints by their names alone.

    Raises:
        EvaluationError: the host does not have one.
    """
    import folder_paths

    found = {}
    for place, folder, file in files.files():
        path = folder_paths.get_full_path(folder, file)
        if path is None:
            there = ", ".join(folder_paths.get_filename_list(folder)) or "none"
            raise EvaluationError(f"{place}: '{file}' is not in models/{folder} (there: {there}); put it there.")
        found[file if folder == "checkpoints" else f"{folder}/{file}"] = Path(path)
    return found


def load_models(files: ModelFiles, extension: Extension) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE: the checkpoint's, replaced by what has a file of its own.

    Raises:
        EvaluationError: a file is not there, or not what it should be, or one of the three has none.
    """
    paths = model_paths(files)
    model = clip = vae = None
    if files.checkpoint:
        with refusing("checkpoint", Exception):  # what a damaged or unknown file leads to has no common class
            model, clip, vae = extension.run_node("CheckpointLoaderSimple", ckpt_name=files.checkpoint)
    if files.diffusion_model:
        with refusing("diffusion_model", Exception):
            model = load_diffusion_model(files.diffusion_model, files.weight_dtype, extension)
    if files.text_encoders:
        clip = _text_encoders([str(paths[f"text_encoders/{name}"]) for name in files.text_encoders], files.type)
    if files.vae:
        with refusing("vae", Exception):
            (vae,) = extension.run_node("VAELoader", vae_name=files.vae)
    for name, part in (("text_encoders", clip), ("vae", vae)):
        if part is None:
            raise EvaluationError(f"{name} is missing: the model's file has none; name its own.")
    return model, clip, vae


def load_diffusion_model(file: str, weight_dtype: str, extension: Extension) -> Any:
    """MODEL from a file in models/diffusion_models."""
    (model,) = extension.run_node("UNETLoader", unet_name=file, weight_dtype=weight_dtype)
    return model


def _text_encoders(paths: list[str], kind: str) -> Any:
    import comfy.sd
    import folder_paths

    clip_type = getattr(comfy.sd.CLIPType, kind.upper(), None)
    if clip_type is None:
        known = ", ".join(of.name.lower() for of in comfy.sd.CLIPType)
        raise EvaluationError(f"type: ComfyUI knows no text encoders for '{kind}'; use one of {known}.")
    with refusing("text_encoders", Exception):
        return comfy.sd.load_clip(paths, folder_paths.get_folder_paths("embeddings"), clip_type=clip_type)
