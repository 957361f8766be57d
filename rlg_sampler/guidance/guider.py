"""A MODEL that samples with Reinforcement Learning Guidance in any sampler, and the GUIDER built on it.

The guided MODEL is a clone of the base with one wrapper around the run. Everything else (sampler, schedule, progress,
previews, Cancel, memory management) stays the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import (
    WrapperExecutor,
    WrappersMP,
    copy_nested_dicts,
    get_all_wrappers,
    merge_nested_dicts,
)
from comfy.samplers import CFGGuider

from ..schedules.schedule import Schedule, constant
from ..weights.pair import ModelPair, check_nothing_added
from .approximation import EXACT, Approximation
from .branch import TunedBranch, TunedModel
from .branch_calls import AUTO
from .branch_options import KEY, Options, same_options, sampling_options
from .guided_run import GuidedRun
from .prediction import KnownPredictions

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_BASE_OPTIONS = "rlg_base_options"


class Guidance:
    """What a guided MODEL carries: its tuned models. An OUTER_SAMPLE wrapper without state between runs.

    Args:
        tuned: one entry per chained tuned model.
        shared, whole: as GuidedRun takes them, for one run among several that belong together; such a guidance never
            leaves the node that makes these runs.
        batching, approximation: as GuidedRun takes them.
    """

    def __init__(
        self,
        tuned: tuple[TunedModel, ...],
        shared: KnownPredictions | None = None,
        whole: Sequence[float] | None = None,
        batching: str = AUTO,
        approximation: Approximation = EXACT,
    ) -> None:
        self.tuned = tuned
        self.batching = batching
        self.approximation = approximation
        self._shared = shared
        self._whole = whole

    @staticmethod
    def on(patcher: ModelPatcher) -> Guidance | None:
        """The guidance that `patcher` carries, if any."""
        return next(iter(patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)), None)

    def __call__(self, executor: WrapperExecutor, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        guider: CFGGuider = executor.class_obj
        check_latent(guider.model_patcher, noise)
        # Read from the run's options: objects in them keep their identity there when a later node clones the MODEL.
        base_options = merge_nested_dicts(guider.model_options[_BASE_OPTIONS], _wrappers_of(self.tuned[0].pair.base))
        base_wrappers = get_all_wrappers(WrappersMP.PREDICT_NOISE, base_options, is_model_options=True)
        branches = self._branches(guider, base_options)
        GuidedRun(
            guider,
            branches,
            base_wrappers,
            kwargs.get("latent_shapes"),
            self._shared,
            self._whole,
            self.batching,
            self.approximation,
        ).install()
        return executor(noise, *args, **kwargs)

    def _branches(self, guider: CFGGuider, base_options: Options) -> list[TunedBranch]:
        loaded = iter(guider.model_patcher.get_additional_models_with_key(KEY))
        branches = []
        for tuned in self.tuned:
            if tuned.pair.shares_weights:
                patcher = guider.model_patcher
            else:
                check_nothing_added(tuned.pair, guider.model_patcher)
                patcher = next(loaded)
            own = not same_options(sampling_options(tuned.pair.tuned), base_options)
            branches.append(TunedBranch(tuned, patcher, base_options, own))
        return branches


def guided_model(
    base: ModelPatcher,
    tuned: ModelPatcher,
    schedule: Schedule,
    tuned_cfg: float | None = None,
    batching: str = AUTO,
    approximation: Approximation = EXACT,
) -> ModelPatcher:
    """A MODEL whose x0 is x0_base + s · (x0_tuned − x0_base), s as scheduled, each with its own CFG.

    Args:
        base: the base MODEL, or one that is guided already: then `tuned` joins its mix,
            x0_base + Σ_k s_k · (x0_k − x0_base).
        tuned: the RL-tuned MODEL; a clone of the base with other weight patches shares its weights.
        schedule: s over the run; 0 throughout leaves the base as it is and does not even load `tuned`.
        tuned_cfg: CFG of the tuned branch; None takes the sampler's.
        batching: one of `BATCHING`, for all branches; in a chain the last one counts.
        approximation: what may be left out, for all branches; in a chain the last one counts.

    Raises:
        ValueError: the two MODELs are no pair.
    """
    if Guidance.on(tuned) is not None:
        raise ValueError(
            "tuned: it is a guided MODEL already; connect the plain tuned MODEL, and chain RLG Model through 'base'."
        )
    pair = ModelPair.from_models(base, tuned)
    model = base.clone()
    if schedule == constant(0.0):
        return model
    before = Guidance.on(base)
    if before is None:
        model.model_options[_BASE_OPTIONS] = copy_nested_dicts(model.model_options)
    tuned_models = (*(before.tuned if before else ()), TunedModel(pair, schedule, tuned_cfg))
    guidance = Guidance(tuned_models, batching=batching, approximation=approximation)
    _guide(model, guidance)
    separate = [t.pair.tuned for t in guidance.tuned if not t.pair.shares_weights]
    if any(a.is_clone(b) for i, a in enumerate(separate) for b in separate[:i]):
        raise ValueError(
            "tuned: it shares its weights with another tuned MODEL of this chain but not with base, and only one of "
            "the two can be loaded; save it as a checkpoint of its own (Save Checkpoint) and load that."
        )
    if separate:
        model.set_additional_models(KEY, separate)
    # Models inside the tuned MODEL's own patches (IP-Adapters and the like) have to be loaded with it.
    needed = [*tuned.model_patches_models(), *tuned.get_additional_models()]
    if pair.shares_weights and needed:
        model.set_additional_models(f"{KEY}_patches_{len(guidance.tuned)}", needed)
    return model


def on_schedule(model: ModelPatcher, schedule: Schedule, shared: KnownPredictions) -> ModelPatcher:
    """A guided MODEL again, with another schedule for the tuned model that was added last, and nothing left out.

    Args:
        model: from `guided_model`.
        schedule: s over the run.
        shared: predictions in common with other runs.
    """
    before = Guidance.on(model)
    *others, last = before.tuned
    model = model.clone()
    _guide(model, Guidance((*others, replace(last, schedule=schedule)), shared=shared, batching=before.batching))
    return model


def as_part_of(model: ModelPatcher, whole: Sequence[float]) -> ModelPatcher:
    """A MODEL for a run that is a part of a longer one: schedules then count the steps of that.

    Args:
        model: from `guided_model`; one that is not guided is returned as it is.
        whole: σ_0 … σ_n of the longer run.
    """
    guidance = Guidance.on(model)
    if guidance is None:
        return model
    model = model.clone()
    own = {"batching": guidance.batching, "approximation": guidance.approximation}
    _guide(model, Guidance(guidance.tuned, whole=whole, **own))
    return model


def _guide(model: ModelPatcher, guidance: Guidance) -> None:
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance)


class RLGGuider(CFGGuider):
    """The stock CFG guider on a guided MODEL, with a clear word for a list of sigmas without a step."""

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if sigmas.shape[-1] < 2:
            raise ValueError(
                "sigmas: the list holds no step; use a scheduler with at least 1 step and a denoise above 0."
            )
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)


def check_latent(model: ModelPatcher, latent: torch.Tensor) -> None:
    """Refuse a latent of another kind of model.

    Args:
        model: the MODEL that is to sample.
        latent: shape (batch, channels, ...), after the host adapted empty ones.

    Raises:
        ValueError: the channel counts differ.
    """
    channels = model.get_model_object("latent_format").latent_channels
    if latent.ndim >= 4 and latent.shape[1] != channels:
        raise ValueError(
            f"latent_image: it has {latent.shape[1]} channels and this model needs {channels}; encode the picture with "
            "this model's VAE, or use its empty latent node."
        )


def _wrappers_of(patcher: ModelPatcher) -> dict[str, Any]:
    own = {kind: {k: v for k, v in keyed.items() if k != KEY} for kind, keyed in patcher.wrappers.items()}
    return {"transformer_options": {"wrappers": own, "callbacks": patcher.callbacks}}
