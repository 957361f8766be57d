"""A base and a tuned MODEL that belong together, and how the tuned one is reached from the base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..messages import model_name
from .deltas import can_be_changed
from .patch_difference import WeightChange, patch_difference
from .unpatched_weight import as_loaded

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)

_NOTHING_TO_GUIDE = (
    "tuned: it has the same weights as base, so there is nothing to guide; check that the tuned model's loader is "
    "connected to 'tuned' and not bypassed, that its LoRA has a strength other than 0, or that its checkpoint is "
    "another file."
)
_SWAPPED = (
    "RLG: base carries a LoRA and tuned carries none, so a higher scale leads away from that LoRA; if the two are "
    "swapped, exchange the links of base and tuned."
)
_OF_BASE_ALONE = (
    "RLG: base carries patches of its own on %d weights (such as %s), which a higher scale takes away again; a LoRA "
    "that is meant for both MODELs goes before the loader of the RL LoRA."
)
# What else a sampling says: how a model is told the noise level (ModelSamplingAuraFlow), how large its noise is, and
# the steps of the sound beside a picture.
_NOT_IN_SIGMAS = ("multiplier", "noise_scale", "audio_shift")


@dataclass(frozen=True)
class ModelPair:
    """Two MODELs that can be mixed.

    Attributes:
        base, tuned: the MODELs as the user connected them.
        changes: what the tuned weights change, where both are clones of one model; None where they are two sets
            of weights. Empty where the two are equal.
    """

    base: ModelPatcher
    tuned: ModelPatcher
    changes: Mapping[str, WeightChange] | None

    @property
    def shares_weights(self) -> bool:
        return self.changes is not None

    @property
    def differs(self) -> bool:
        """Whether there is something to guide by."""
        return self.changes is None or bool(self.changes)

    @classmethod
    def from_models(cls, base: ModelPatcher, tuned: ModelPatcher) -> ModelPair:
        """Check that the two belong together.

        Raises:
            ValueError: they do not; the message names the input and what to do.
        """
        if base.is_clone(tuned):
            return cls(base, tuned, _shared_changes(base, tuned))
        _check_same_architecture(base, tuned)
        _check_same_noise_process(base, tuned)
        if base.patches and not tuned.patches:
            logger.warning(_SWAPPED)
        return cls(base, tuned, {} if _same_weights(base, tuned) else None)

    def check_runs_together(self) -> None:
        """Refuse two MODELs that one run cannot evaluate in turn.

        Raises:
            ValueError: they compute on two devices, or one would go on from what the other left in the model.
        """
        devices = [torch.device(model.load_device) for model in (self.base, self.tuned)]
        if len({(device.type, device.index or 0) for device in devices}) > 1:
            raise ValueError(
                f"tuned: it computes on {devices[1]} and base on {devices[0]}; select the same device for both."
            )
        if self.shares_weights and hasattr(self.base.model.diffusion_model, "clear_kv_cache"):  # HiDream-O1
            raise ValueError(
                f"tuned: {model_name(self.base)} keeps what its text became from one call to the next, so that a LoRA "
                "on the fly would get the base's; save the tuned MODEL as a checkpoint of its own (Save Checkpoint) "
                "and load that."
            )

    def check_differs(self) -> None:
        """Refuse two MODELs that are equal.

        Raises:
            ValueError: they are.
        """
        if not self.differs:
            raise ValueError(_NOTHING_TO_GUIDE)

    def warn_if_equal(self) -> None:
        """Say that the base is sampled alone, as after bypassing the LoRA loader to compare."""
        if not self.differs:
            logger.warning("RLG: %s Until then base is sampled alone.", _NOTHING_TO_GUIDE)


def check_nothing_added(pair: ModelPair, model: ModelPatcher) -> None:
    """Refuse weights or model patches that were put on a guided MODEL whose tuned model has weights of its own.

    Args:
        pair: two checkpoints.
        model: the guided MODEL, a clone of `pair.base` with whatever later nodes added.

    Raises:
        ValueError: something was added, which would act on the base alone.
    """
    patches = [
        name for name in model.object_patches if model.object_patches[name] is not pair.base.object_patches.get(name)
    ]
    changed = [*patch_difference(pair.base.patches, model.patches), *patches]
    if changed:
        raise ValueError(
            f"model: a LoRA or model patch after RLG Model ({changed[0]}) would act on the base alone, since the tuned "
            "model is another checkpoint; put that node before RLG Model, on both MODELs."
        )


def _shared_changes(base: ModelPatcher, tuned: ModelPatcher) -> Mapping[str, WeightChange]:
    _check_same_attachments(base, tuned)
    changes = patch_difference(base.patches, tuned.patches)
    for key in changes:
        if not can_be_changed(base.model, key):
            raise ValueError(
                f"tuned: it changes {key}, which cannot be changed on the fly; save the tuned MODEL as a checkpoint of "
                "its own (Save Checkpoint) and load that, so that the pair is two checkpoints."
            )
    if of_base_alone := [key for key, change in changes.items() if change.taken_away]:
        added = any(change.added for change in changes.values())
        logger.warning(*(_OF_BASE_ALONE, len(of_base_alone), of_base_alone[0]) if added else (_SWAPPED,))
    return changes


def _check_same_attachments(base: ModelPatcher, tuned: ModelPatcher) -> None:
    """Only weights differ on the fly; what else sits on the tuned MODEL alone would be lost without a sign."""
    for kind, of_base, of_tuned in (
        ("a model patch", base.object_patches, tuned.object_patches),
        ("injections (such as a bypass LoRA)", base.injections, tuned.injections),
        ("weight wrappers", base.weight_wrapper_patches, tuned.weight_wrapper_patches),
    ):
        for name in of_base.keys() | of_tuned.keys():
            if not _same_attachment(of_base.get(name), of_tuned.get(name)):
                raise ValueError(
                    f"tuned: base and tuned differ in {kind} on '{name}'; put that node before the LoRA loader, "
                    "so that both MODELs carry it, or load the LoRA with RLG Load LoRA."
                )


def _same_attachment(a: Any, b: Any) -> bool:
    if a is b or (isinstance(a, list) and a == b):
        return True
    # Two nodes with equal settings make equal samplings, each with a class of its own: compare what they do.
    same_type = type(a).__name__ == type(b).__name__ and type(a).__bases__ == type(b).__bases__
    same_numbers = all(getattr(a, name, None) == getattr(b, name, None) for name in _NOT_IN_SIGMAS)
    # They move with their models, of which only one may be on the GPU.
    return same_type and same_numbers and hasattr(a, "sigmas") and torch.equal(a.sigmas.cpu(), b.sigmas.cpu())


def _check_same_architecture(base: ModelPatcher, tuned: ModelPatcher) -> None:
    kinds = model_name(base), model_name(tuned)
    advice = "connect the RL-tuned version of the same base model."
    if type(base.model) is not type(tuned.model):
        raise ValueError(f"tuned: it is a {kinds[1]} model and base is a {kinds[0]}; {advice}")
    latents = [m.get_model_object("latent_format") for m in (base, tuned)]
    if type(latents[0]) is not type(latents[1]):
        raise ValueError(
            f"tuned: its latents are {type(latents[1]).__name__} and base's are {type(latents[0]).__name__}; {advice}"
        )
    shapes = [{k: tuple(v.shape) for k, v in _weights(m).items()} for m in (base, tuned)]
    if shapes[0] != shapes[1]:
        key = min(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))
        raise ValueError(
            f"tuned: it is another size of {kinds[0]} than base ({key} is {shapes[1].get(key, 'absent')} there and "
            f"{shapes[0].get(key, 'absent')} in base); {advice}"
        )


def _check_same_noise_process(base: ModelPatcher, tuned: ModelPatcher) -> None:
    types = [m.model.model_type.name for m in (base, tuned)]
    flow = ["FLOW" in t or "FLUX" in t for t in types]
    if flow[0] != flow[1]:
        raise ValueError(
            f"tuned: it was trained on another noise process ({types[1]}) than base ({types[0]}), so their steps do "
            "not match; connect the RL-tuned version of the same base model."
        )
    samplings = [m.get_model_object("model_sampling") for m in (base, tuned)]
    if types[0] != types[1] or not _same_attachment(*samplings):
        logger.warning(
            "RLG: base and tuned use different model sampling (%s, %s): they are mixed as x0 on base's sigmas. "
            "If that is not meant, put the same ModelSampling node on both.",
            *types,
        )


def _same_weights(base: ModelPatcher, tuned: ModelPatcher) -> bool:
    if patch_difference(base.patches, tuned.patches):
        return False
    parameters = (dict(model.model.diffusion_model.named_parameters()) for model in (base, tuned))
    if _have_one_in_common(*parameters):
        return False
    of_tuned = _weights(tuned)
    return all(
        weight.dtype == of_tuned[key].dtype and torch.equal(weight, of_tuned[key].to(weight.device))
        for key, weight in _weights(base).items()
    )


def _have_one_in_common(of_base: Mapping[str, Any], of_tuned: Mapping[str, Any]) -> bool:
    """Whether a pack has wrapped one set of weights twice (Nunchaku's LoRA loader): what differs is in the wrapper."""
    return any(of_tuned.get(name) is parameter for name, parameter in of_base.items())


def _weights(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """Weights and biases without patches, in the shapes they act in; quantised models store more beside them."""
    named = model.model.diffusion_model.named_parameters()
    return {
        key: as_loaded(model, f"diffusion_model.{key}", weight)
        for key, weight in named
        if key.endswith((".weight", ".bias"))
    }
