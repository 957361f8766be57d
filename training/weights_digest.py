"""Which model something was made with, as a short hash of samples from its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..rlg_sampler.weights.unpatched_weight import as_loaded

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_SAMPLES = 64


def weights_digest(model: ModelPatcher) -> str:
    """A hash of a model's weights as its file has them, and of the patches (such as a style LoRA) on them.

    A few numbers of each tensor are read, so that it takes no time for large models either. Buffers and parameters of
    other names are left out: loading casts them in place, and has patches such as another sampling put in.
    """
    digest = hashlib.sha256()
    weights = (named for named in model.model.named_parameters() if named[0].endswith((".weight", ".bias")))
    for key, weight in weights:
        digest.update(_entry(key, as_loaded(model, key, weight)))
    for key, patches in sorted(model.patches.items()):
        digest.update(key.encode())
        for part in _parts(patches):
            digest.update(_sample(part) if isinstance(part, torch.Tensor) else repr(part).encode())
    return digest.hexdigest()


def networks_digest(networks: Sequence[torch.nn.Module]) -> str:
    """The same of networks without patches, such as those of a reward."""
    digest = hashlib.sha256()
    for network in networks:
        for key, weight in network.named_parameters():
            digest.update(_entry(key, weight))
    return digest.hexdigest()


def _entry(key: str, weight: torch.Tensor) -> bytes:
    return f"{key} {tuple(weight.shape)} {weight.dtype}".encode() + _sample(weight)


def _sample(tensor: torch.Tensor) -> bytes:
    stored = getattr(tensor, "_qdata", tensor).detach().flatten()
    # Beside each other: a file that nothing has read yet is then read at one place for each tensor.
    start = max(0, (stored.numel() - _SAMPLES) // 2)
    chosen = stored[start : start + _SAMPLES]
    return chosen.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _parts(patch: Any) -> Iterator[torch.Tensor | float | str]:
    """Tensors, numbers and names in a weight's patches, in order."""
    if isinstance(patch, list | tuple):
        for part in patch:
            yield from _parts(part)
    elif hasattr(patch, "weights"):
        yield from _parts(patch.weights)
    elif isinstance(patch, torch.Tensor | float | int | str):
        yield patch
