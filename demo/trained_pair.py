"""The demo's trained models, from the small files in `demo/pair` to what a user would have in ComfyUI's folders.

The files hold only what was trained. Added here: the text encoder, which is not trained, and zeros for all that the
host's layouts have beyond it (text dimensions of encoders that are not there, the other half of TAESD's channels).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.tiny_encoders import clip_l_in_checkpoint, vae_state_dict

PAIR = Path(__file__).parent / "pair"
CHECKPOINT = "rlg_demo_sd3.safetensors"
LORAS = {name: f"rlg_demo_{name}" for name in ("composition", "text", "compressibility")}
"""What it is tuned for → folder under `loras`."""

CONTEXT_DIM, POOLED_DIM = 4096, 2048
_WIDENED = {
    "model.diffusion_model.context_embedder.weight": CONTEXT_DIM,
    "model.diffusion_model.y_embedder.mlp.0.weight": POOLED_DIM,
}


def write_models(models: Path) -> None:
    """Write the checkpoint (0.26 GB) and the LoRA folders into a ComfyUI models folder."""
    checkpoints = models / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint(), checkpoints / CHECKPOINT)
    for reward, name in LORAS.items():
        shutil.copytree(PAIR / reward, models / "loras" / name, ignore=shutil.ignore_patterns("*.md", "*.csv"))


def part(pair: Path, file: str) -> dict[str, Tensor]:
    """The weights in a file of `pair`, or in the demo's own where that has none.

    Raises:
        ValueError: it is damaged.
    """
    path = pair / file if (pair / file).exists() else PAIR / file
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); train that stage again, or delete the file.") from error


def network(pair: Path = PAIR) -> dict[str, Tensor]:
    """The base model's MMDiT-X alone, fp16, as it is called in a checkpoint."""
    weights = part(pair, "base/mmdit.safetensors")
    for name, inputs in _WIDENED.items():
        weights[name] = _filled_up(weights[name], (len(weights[name]), inputs))
    return weights


def checkpoint(pair: Path = PAIR) -> dict[str, Tensor]:
    """The base model for CheckpointLoaderSimple: MMDiT-X, CLIP-L and VAE, fp16."""
    weights = network(pair) | clip_l_in_checkpoint()
    trained = part(pair, "vae/vae.safetensors")
    for name, whole in vae_state_dict().items():
        # The scalars undo what the host does to SD3 latents; they are not trained.
        weights[f"first_stage_model.{name}"] = _filled_up(trained[name], whole.shape) if name in trained else whole
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def _filled_up(tensor: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """`tensor` in the first corner of a tensor of zeros."""
    whole = torch.zeros(shape, dtype=tensor.dtype)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole
