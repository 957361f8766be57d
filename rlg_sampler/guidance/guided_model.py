"""A MODEL that samples with Reinforcement Learning Guidance in any sampler, and the GUIDER built on it.

The guided MODEL is a clone of the base with one wrapper around the run. Everything else (sampler, schedule, progress,
previews, Cancel, memory management) stays the host's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.samplers import CFGGuider

from ..ksampler_inputs import check_latent
from ..schedules.schedule import Schedule, constant
from ..weights.pair import ModelPair, check_nothing_added
from .approximation import EXACT
from .branch import BaseBranch, TunedBranch, TunedModel
from .branch_options import KEY, NotCopied, Options, same_options, sampling_options
from .guided_run import GuidedRun
from .prediction import KnownPredictions
from .settings import GuidanceSettings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_BASE_OPTIONS = "rlg_base_options"
# The host's keys.
COPIES = "multigpu"
_LAZY_CACHE = "lazycache"
EASY_CACHE = "easycache"
POSE_CACHE = "animate2_cache"
_OF_WHOLE_RUNS = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.SAMPLER_SAMPLE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Guidance(NotCopied):
    """What a guided MODEL carries: an OUTER_SAMPLE wrapper without state between runs.

    Attributes:
        tuned: one entry per chained tuned model.
        known: predictions in common with other runs of a sweep. A guidance that has them, or `whole`, never leaves the
            node that makes these runs.
        whole: σ_0 … σ_n of the run that this one is a part of.
    """

    tuned: tuple[TunedModel, ...]
    known: KnownPredictions | None = None
    whole: Sequence[float] | None = None

    @staticmethod
    def on(patcher: ModelPatcher) -> Guidance | None:
        """The guidance that `patcher` carries, if any."""
        return next(iter(patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)), None)

    def __call__(self, executor: WrapperExecutor, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        guider: CFGGuider = executor.class_obj
        check_latent(guider.model_patcher, noise)
        if not any(tuned.pair.differs for tuned in self.tuned):
            return executor(noise, *args, **kwargs)
        # Read from the run's options: objects in them keep their identity there when a later node clones the MODEL.
        base_options = sampling_options(self.tuned[0].pair.base, guider.model_options[_BASE_OPTIONS])
        _check_caches(guider.model_options, self.tuned[0].pair.base, [each.pair.tuned for each in self.tuned])
        _load_as_base(guider)
        _load_once(guider.model_patcher)
        base_wrappers = get_all_wrappers(WrappersMP.PREDICT_NOISE, base_options, is_model_options=True)
        base, tuned = BaseBranch(guider, base_wrappers), self._tuned_branches(guider, base_options)
        of_run, shapes = self.tuned[-1].settings, kwargs.get("latent_shapes")
        GuidedRun(guider, base, tuned, of_run, shapes, self.known, self.whole).install()
        return executor(noise, *args, **kwargs)

    def _tuned_branches(self, guider: CFGGuider, base_options: Options) -> list[TunedBranch]:
        loaded = iter(guider.model_patcher.get_additional_models_with_key(KEY))
        branches = []
        for tuned in (tuned for tuned in self.tuned if tuned.pair.differs):
            if tuned.pair.shares_weights:
                patcher = guider.model_patcher
            else:
                check_nothing_added(tuned.pair, guider.model_patcher)
                patcher = next(loaded)
            own = sampling_options(tuned.pair.tuned)
            if same_options(own, base_options):
                own = None
            branches.append(TunedBranch(guider, tuned, patcher, base_options, own))
        return branches


def guided_model(base: ModelPatcher, tuned: ModelPatcher, settings: GuidanceSettings) -> ModelPatcher:
    """A MODEL whose x0 is x0_base + s · (x0_tuned − x0_base), each with its own CFG.

    Args:
        base: the base MODEL, or one that is guided already: then `tuned` joins its mix,
            x0_base + Σ_k s_k · (x0_k − x0_base).
        tuned: the RL-tuned MODEL; a clone of the base with other weight patches shares its weights.
        settings: the scale s and how to guide; a scale of 0 throughout leaves the base as it is and does not even load
            `tuned`. So does, with a warning, a `tuned` that is equal to `base`.

    Raises:
        ValueError: the two MODELs are no pair.
    """
    if Guidance.on(tuned) is not None:
        raise ValueError(
            "tuned: it is a guided MODEL already; connect the plain tuned MODEL, and chain RLG Model through 'base'."
        )
    pair = ModelPair.from_models(base, tuned)
    pair.warn_if_equal()
    _warn_of_whole_runs(pair)
    model = base.clone()
    if settings.schedule == constant(0.0):
        return model
    if pair.differs:
        pair.check_runs_together()
    before = Guidance.on(base)
    if before is None:
        model.model_options[_BASE_OPTIONS] = create_model_options_clone(model.model_options)
    guidance = Guidance((*(before.tuned if before else ()), TunedModel(pair, settings)))
    _load_with(model, guidance)
    return _guided_by(guidance, model)


def on_schedule(model: ModelPatcher, schedule: Schedule, known: KnownPredictions) -> ModelPatcher:
    """A guided MODEL again, with another schedule for the tuned model that was added last, and nothing left out.

    Args:
        model: from `guided_model`.
        schedule: s over the run.
        known: predictions in common with other runs.
    """
    *others, last = Guidance.on(model).tuned
    last = replace(last, settings=replace(last.settings, schedule=schedule, approximation=EXACT))
    return _guided_by(Guidance((*others, last), known=known), _sibling(model))


def scale_has_effect(model: ModelPatcher) -> bool:
    """Whether the tuned model that was added last to a guided MODEL differs from its base."""
    return Guidance.on(model).tuned[-1].pair.differs


def as_part_of(model: ModelPatcher, whole: Sequence[float]) -> ModelPatcher:
    """A MODEL for a run that is a part of a longer one: schedules then count the steps of that.

    Args:
        model: from `guided_model`; one that is not guided is returned as it is.
        whole: σ_0 … σ_n of the longer run.
    """
    guidance = Guidance.on(model)
    return model if guidance is None else _guided_by(replace(guidance, whole=whole), _sibling(model))


def _sibling(model: ModelPatcher) -> ModelPatcher:
    """A clone of a guided MODEL that descends from the same base.

    When a loaded MODEL goes, the host takes its parent in its place. It finds none if both go in one garbage collection
    (dpm_fast and dpm_adaptive leave cycles), and then collects garbage at each load for as long as the weights live.
    """
    sibling = model.clone()
    sibling.parent = model.parent
    return sibling


def _guided_by(guidance: Guidance, model: ModelPatcher) -> ModelPatcher:
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance)
    return model


def _load_with(model: ModelPatcher, guidance: Guidance) -> None:
    """Have the host load with `model` what its tuned models need.

    Raises:
        ValueError: two of them would need the same weights with different patches.
    """
    separate = [tuned.pair.tuned for tuned in guidance.tuned if not tuned.pair.shares_weights]
    if any(a.is_clone(b) for i, a in enumerate(separate) for b in separate[:i]):
        raise ValueError(
            "tuned: it shares its weights with another tuned MODEL of this chain but not with base, and only one of "
            "the two can be loaded; save it as a checkpoint of its own (Save Checkpoint) and load that."
        )
    if separate:
        model.set_additional_models(KEY, [_without_copies(each) for each in separate])
    # Models inside the tuned MODEL's own patches (IP-Adapters and the like) have to be loaded with it.
    last = guidance.tuned[-1].pair
    needed = [*last.tuned.model_patches_models(), *_without_copies(last.tuned).get_additional_models()]
    if last.shares_weights and last.differs and needed:
        model.set_additional_models(f"{KEY}_patches_{len(guidance.tuned)}", needed)


def _warn_of_whole_runs(pair: ModelPair) -> None:
    """Name what works on whole runs and is on the tuned MODEL alone: a run is the base's."""
    for kind in _OF_WHOLE_RUNS:
        of_tuned, of_base = (model.wrappers.get(kind, {}) for model in (pair.tuned, pair.base))
        for key in (key for key, own in of_tuned.items() if own and not of_base.get(key)):
            name = key or getattr(of_tuned[key][0], "__qualname__", type(of_tuned[key][0]).__name__)
            logger.warning(
                "RLG: tuned: '%s' works on whole runs, and has no effect on the tuned MODEL alone; put it before the "
                "LoRA loader, or after RLG Model.", name,
            )  # fmt: skip


def _without_copies(tuned: ModelPatcher) -> ModelPatcher:
    """Without its copies for other GPUs (MultiGPU CFG Split): the host would evaluate them in place of the base's."""
    if not tuned.get_additional_models_with_key(COPIES):
        return tuned
    alone = tuned.clone()
    alone.remove_additional_models(COPIES)
    return alone


def _load_as_base(guider: CFGGuider) -> None:
    """Have tuned checkpoints loaded as the base is, which newer hosts take out of dynamic loading for cond hooks."""
    patcher = guider.model_patcher
    hooked = any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds)
    separate = patcher.get_additional_models_with_key(KEY)
    if hooked and any(hasattr(each, "get_non_dynamic_delegate") and each.is_dynamic() for each in separate):
        whole = [each.get_non_dynamic_delegate() if each.is_dynamic() else each for each in separate]
        patcher.set_additional_models(KEY, whole)


def _load_once(model: ModelPatcher) -> None:
    """Have the tuned models of a base that is split over GPUs loaded on the first alone.

    The host would copy them for each of the others, from disk and at each run, for nobody to evaluate.
    """
    own = {key: models for key, models in model.additional_models.items() if key.startswith(KEY)}
    for copy in model.get_additional_models_with_key(COPIES):
        for key, models in own.items():
            copy.set_additional_models(key, models)


def _check_caches(options: Options, base: ModelPatcher, tuned: Sequence[ModelPatcher]) -> None:
    """Raises ValueError: a cache that would take what one of the MODELs computed for the other's, or never begin.

    Args:
        options: of the run, with what was put on the guided MODEL.
        base, tuned: the MODELs.
    """
    models = (base, *tuned)
    if any(model.get_wrappers(WrappersMP.PREDICT_NOISE, _LAZY_CACHE) for model in models):
        raise ValueError(
            "model: LazyCache on base or tuned would take the prediction of one for that of the other; take it out, or "
            "put it after RLG Model, where it sees their mix."
        )
    of_run, of_base, *of_tuned = (
        of.get("transformer_options", {}) for of in (options, *(m.model_options for m in models))
    )
    if any(EASY_CACHE in own for own in of_tuned) and EASY_CACHE not in of_base:
        raise ValueError(
            "tuned: EasyCache on the tuned model alone never begins; put it before the LoRA loader, on both MODELs, or "
            "after RLG Model."
        )
    in_run, *of_each = map(kv_caches, (of_run, of_base, *of_tuned))
    different = {id(cache) for caches in of_each for cache in caches}
    if len(in_run) > len(of_each[0]) or len(different) < sum(map(len, of_each)):
        raise ValueError(
            "model: one Flux KV Cache for base and tuned would give each the reference pictures of the other; put one "
            "after the LoRA loader and another on base, or take it out."
        )
    if any(POSE_CACHE in own for own in (of_run, of_base, *of_tuned)):
        raise ValueError(
            "model: WanAnimate2Cache would give the tuned model what it has kept of the base, as it does not tell them "
            "apart; take it out."
        )


def kv_caches(transformer_options: Options) -> list[Any]:
    """The patches of Flux KV Cache in a model's options: each keeps what one model makes of reference pictures."""
    patches = transformer_options.get("patches", {}).get("attn1_patch", [])
    return [patch for patch in patches if type(patch).__name__ == "KV_Attn_Input"]


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
