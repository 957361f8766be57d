"""MODEL, CLIP, VAE and reward of a plan, from the host's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError, refusing
from evaluation.host import Extension
from training.program.plan import Plan


def load_models(plan: Plan, extension: Extension) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE: the checkpoint's, replaced by what has a file of its own.

    Raises:
        EvaluationError: a file is not there, or not what it should be, or one of the three has none.
    """
    model = clip = vae = None
    if plan.checkpoint:
        _path("checkpoint", "checkpoints", plan.checkpoint)
        with refusing("checkpoint", Exception):  # what a damaged or unknown file leads to has no common class
            model, clip, vae = extension.run_node("CheckpointLoaderSimple", ckpt_name=plan.checkpoint)
    if plan.diffusion_model:
        _path("diffusion_model", "diffusion_models", plan.diffusion_model)
        with refusing("diffusion_model", Exception):
            (model,) = extension.run_node("UNETLoader", unet_name=plan.diffusion_model, weight_dtype=plan.weight_dtype)
    if plan.text_encoders:
        clip = _text_encoders(plan)
    if plan.vae:
        _path("vae", "vae", plan.vae)
        with refusing("vae", Exception):
            (vae,) = extension.run_node("VAELoader", vae_name=plan.vae)
    for name, part in (("text_encoders", clip), ("vae", vae)):
        if part is None:
            raise EvaluationError(f"{name} is missing: the model's file has none; name its own.")
    return model, clip, vae


def load_reward(plan: Plan, extension: Extension) -> Any:
    """The reward, or the sum of several.

    Raises:
        EvaluationError: there is none of a name, its weights are not there, or all count nothing.
    """
    loaded = []
    registry = extension.module("rewards.registry")
    for index, wanted in enumerate(plan.rewards):
        with refusing(f"rewards[{index}]", ValueError, OSError, ImportError):
            loaded.append((registry.load(wanted.name, wanted.file), wanted.weight))
    if len(loaded) == 1 and loaded[0][1] == 1.0:
        return loaded[0][0]
    combined = extension.module("rewards.combined")
    if plan.normalise not in combined.NORMALISATIONS:
        raise EvaluationError(f"normalise: use one of {', '.join(combined.NORMALISATIONS)}.")
    with refusing("rewards", ValueError):
        return combined.CombinedReward(loaded, plan.normalise)


def _text_encoders(plan: Plan) -> Any:
    import comfy.sd
    import folder_paths

    paths = [_path(f"text_encoders[{i}]", "text_encoders", name) for i, name in enumerate(plan.text_encoders)]
    kind = getattr(comfy.sd.CLIPType, plan.type.upper(), None)
    if kind is None:
        known = ", ".join(of.name.lower() for of in comfy.sd.CLIPType)
        raise EvaluationError(f"type: ComfyUI knows no text encoders for '{plan.type}'; use one of {known}.")
    with refusing("text_encoders", Exception):
        return comfy.sd.load_clip(
            [str(path) for path in paths], folder_paths.get_folder_paths("embeddings"), clip_type=kind
        )


def _path(place: str, kind: str, file: str) -> Path:
    """Raises EvaluationError: the host has no such file."""
    import folder_paths

    path = folder_paths.get_full_path(kind, file)
    if path is None:
        there = ", ".join(folder_paths.get_filename_list(kind)) or "none"
        raise EvaluationError(f"{place}: '{file}' is not in models/{kind} (there: {there}); put it there.")
    return Path(path)
