"""One sampling run of a guided MODEL: evaluates the branches at each step and mixes them.

A branch's x0 is what its MODEL gives at this step in a stock sampler: its own conds, CFG and post-CFG patches. The
mix comes after, so it is right for non-linear guidance too, and it is the order of the RLG reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ..schedules.schedule import step_index
from .approximation import EXACT, Directions, lead
from .asked import Asked
from .branch import BaseBranch, TunedBranch
from .branch_calls import BranchCalls
from .branch_options import KEY, NotCopied, Options
from .cond_hooks import Conds, pass_keyframes
from .mixing import BASE, mix, models_of
from .prediction import Evaluation, KnownPredictions, Prediction
from .settings import GuidanceSettings

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.samplers import CFGGuider

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Step:
    """Scale of each tuned model at one step, the models that the mix then depends on, and whether it may be rough."""

    scales: tuple[float, ...]
    models: tuple[int, ...]
    approximate: bool


class GuidedRun(NotCopied):
    """State of one run; made when sampling starts and dropped with the run's model options.

    Args:
        guider: the guider that samples (stock or another pack's).
        base: the base model.
        tuned: the tuned models.
        settings: those that hold for the whole run.
        latent_shapes: as the host passes it to `outer_sample`.
        known: predictions in common with other runs of a sweep.
        whole: sigmas of the run that this one is a part of; None where it is whole.
    """

    def __init__(
        self,
        guider: CFGGuider,
        base: BaseBranch,
        tuned: Sequence[TunedBranch],
        settings: GuidanceSettings,
        latent_shapes: Any,
        known: KnownPredictions | None = None,
        whole: Sequence[float] | None = None,
    ) -> None:
        self._guider, self._base, self._tuned = guider, base, tuned
        self._calls = BranchCalls(guider, {BASE: base, **dict(enumerate(tuned))}, settings.batching)
        self._approximation = settings.approximation
        self._directions = Directions(settings.approximation.direction_every)
        self._known, self._whole = known, whole
        self._sigmas: Sequence[float] = []
        self._steps: list[_Step] = []
        self._steps_differ = False
        self._asked = Asked(guider)
        self._latent_shapes = latent_shapes
        # The host prepares the guider's own dictionaries for the base model; the tuned branches start from these.
        self._raw_conds = {name: [c.copy() for c in conds] for name, conds in guider.conds.items()}
        self._own_post_cfg = len(guider.model_options.get("sampler_post_cfg_function", []))

    def install(self) -> None:
        """Put the run's wrappers into the guider's options of this run.

        PREDICT_NOISE wrappers of later nodes (caches, CFG overrides) stay around the mix; those of the base MODEL
        itself belong to its branch, and are called there.
        """
        options = self._guider.model_options
        present = get_all_wrappers(WrappersMP.PREDICT_NOISE, options, is_model_options=True)
        later = [w for w in present if not any(w is own for own in self._base.predict_wrappers)]
        wrappers = options["transformer_options"]["wrappers"]
        wrappers[WrappersMP.PREDICT_NOISE] = {KEY: [*later, self.predict_noise]}
        wrappers.setdefault(WrappersMP.PREPARE_SAMPLING, {})[KEY] = [self.prepare_sampling]
        wrappers.setdefault(WrappersMP.SAMPLER_SAMPLE, {})[KEY] = [self.sampler_sample]

    def prepare_sampling(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING wrapper: the host is about to load the models.

        The deltas take their place first. It then finds that much less memory free, and loads fewer weights if need be.
        """
        for branch in self._tuned:
            branch.make_deltas(self._guider.model_patcher.load_device)
        return executor(*args, **kwargs)

    def sampler_sample(
        self,
        executor: WrapperExecutor,
        guider: CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """SAMPLER_SAMPLE wrapper: the models are loaded, the first step has not begun."""

        def prepare(model: BaseModel, conds: Conds) -> Conds:
            rest = noise.device, latent_image, denoise_mask, extra_args.get("seed")
            return comfy.samplers.process_conds(model, noise, conds, *rest, latent_shapes=self._latent_shapes)

        _check_sampler(executor.class_obj)
        with ExitStack() as stack:
            for branch in self._tuned:
                stack.enter_context(branch.ready(self._raw_conds, prepare, noise.device))
            # Control nets remember the model they were prepared for last, and take its sigmas.
            for conds in guider.conds.values():
                comfy.samplers.pre_run_control(guider.inner_model, conds)
            self._sigmas = self._whole or sigmas.tolist()
            self._steps = self._plan_steps()
            differ = len(set(self._steps)) > 1 or self._approximation.direction_every > 1
            self._steps_differ = differ or self._known is not None
            self._announce(extra_args["model_options"], noise)
            stack.callback(self._calls.leave)
            callback = self._asked.after_steps(callback)
            found = executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
            self._asked.check()
            return found

    def predict_noise(
        self,
        executor: WrapperExecutor,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: Options | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: the guided x0 at this step, shaped like `x`."""
        self._asked.once = True
        options, sampler_hooks = self._without_sampler_hooks(model_options or {})
        evaluation = Evaluation(x, timestep, options, seed, with_cfg_parts=bool(sampler_hooks))
        for branch in (self._base, *self._tuned):
            pass_keyframes(branch.model, branch.conds, branch.cfg, evaluation)
        number = self._step_at(timestep)
        step = self._steps[number]
        known = self._known.at(number, x, timestep) if self._known else {}
        missing = [model for model in step.models if model not in known]
        before = _random_states(x.device) if self._known else []
        found = self._predict(number, missing, evaluation)
        # A patch that draws random numbers (Tome, HyperTile) draws others in another run.
        if self._known and all(map(torch.equal, before, _random_states(x.device))):
            known.update(found)
        predictions = {model: (known | found)[model] for model in step.models}
        mixed = _mixed(predictions, step.scales, "x0")
        if self._known:
            mixed = mixed.clone()  # a sampler may work in place on what it gets
        if not sampler_hooks or any(p.cond is None for p in predictions.values()):
            return mixed
        arguments = self._for_sampler_hooks(predictions, step.scales, evaluation)
        for hook in sampler_hooks:
            mixed = hook({"denoised": mixed, **arguments})
        return mixed

    def _plan_steps(self) -> list[_Step]:
        count = len(self._sigmas) - 1
        scales = zip(*(branch.tuned.settings.schedule.per_step(count) for branch in self._tuned), strict=True)
        approximate = self._approximation.per_step(count)
        return [_Step(s, models_of(s), rough) for s, rough in zip(scales, approximate, strict=True)]

    def _step_at(self, timestep: torch.Tensor) -> int:
        # Reading the noise level makes the processor wait for a GPU: only where steps differ.
        if self._steps_differ:
            return step_index(float(timestep.max()), self._sigmas)
        return 0

    def _predict(self, number: int, models: Sequence[int], evaluation: Evaluation) -> dict[int, Prediction]:
        """What `models` predict at a step, as exactly as the run asks for."""
        step = self._steps[number]
        approximation = self._approximation if step.approximate else EXACT
        reuses = approximation.direction_every > 1 and len(models) > 1
        evaluated = list(models)
        if reuses and self._directions.known_at(number, models, evaluation.x.shape):
            evaluated = [lead(step.scales, models)]
        uncond_of = None
        if approximation.shared_uncond:
            uncond_of = self._calls.uncond_for_all(step.scales, evaluated, evaluation.options)
        predictions = self._calls.predict(evaluated, evaluation, uncond_of)
        if not reuses:
            return predictions
        if len(evaluated) == 1:
            return self._directions.complete(models, evaluated[0], predictions[evaluated[0]])
        self._directions.learn(number, predictions)
        return predictions

    def _without_sampler_hooks(self, options: Options) -> tuple[Options, list[Callable]]:
        """Split off the post-CFG functions that the sampler itself put on top of the MODEL's."""
        functions = options.get("sampler_post_cfg_function", [])
        own, hooks = functions[: self._own_post_cfg], functions[self._own_post_cfg :]
        return ({**options, "sampler_post_cfg_function": own} if hooks else options), hooks

    def _for_sampler_hooks(
        self, predictions: Mapping[int, Prediction], scales: Sequence[float], evaluation: Evaluation
    ) -> dict[str, Any]:
        """The guided predictions, for samplers that look into CFG (euler_cfg_pp and its kin)."""
        return {
            "cond_denoised": _mixed(predictions, scales, "cond"),
            "uncond_denoised": _mixed(predictions, scales, "uncond"),
            "cond": self._guider.conds.get("positive"),
            "uncond": self._guider.conds.get("negative"),
            "cond_scale": self._guider.cfg,
            "model": self._guider.inner_model,
            "model_options": evaluation.options,
            "sigma": evaluation.sigma,
            "input": evaluation.x,
        }

    def _announce(self, options: Options, x: torch.Tensor) -> None:
        """One line on which way the run takes, and one on each thing that will not be as asked for."""
        largest = max(self._steps, key=lambda step: len(step.models), default=_Step((), (), False))
        together = len(self._calls.together(largest.models, options, x))
        adapted = sum(len(branch.deltas.modules) for branch in self._tuned if branch.deltas)
        weights = f"shared weights, {adapted} adapted modules" if adapted else "two sets of weights"
        passes = f"{together} branches in one batch" if together else "branches one after another"
        own_patches = any(branch.own_options is not None for branch in self._tuned)
        patches = ", each with the patches of its own MODEL" if own_patches else ""
        schedules = [branch.tuned.settings.schedule for branch in self._tuned]
        # Runs that belong together have a line of their own.
        level = logging.DEBUG if self._known or self._whole else logging.INFO
        logger.log(level, "RLG: scale %s, %s, %s%s", "; ".join(map(str, schedules)), weights, passes, patches)
        if self._approximation != EXACT:
            logger.log(level, "RLG: approximate: %s", self._approximation)
        shared_uncond = self._approximation.shared_uncond
        several = len(largest.models) > 1
        if shared_uncond and several and self._calls.uncond_for_all(largest.scales, largest.models, options) is None:
            logger.info(
                "RLG: each model keeps its own uncond: CFG is 1 for all but one, or a patch changes how it works."
            )
        steps = len(self._sigmas) - 1
        for schedule in schedules:
            if unreached := schedule.unreached(steps):
                logger.warning(
                    "RLG: none of the %d steps takes scale %s of the schedule %s; widen its range or use more steps.",
                    steps, ", ".join(f"{s:g}" for s in unreached), schedule,
                )  # fmt: skip


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """Of the generators that draw where nobody names one."""
    states = [torch.get_rng_state()]
    of_device = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(of_device, "get_rng_state"):
        states.append(of_device.get_rng_state())
    return states


def _check_sampler(sampler: Any) -> None:
    """Raises ValueError: the sampler keeps what one model told it."""
    if getattr(getattr(sampler, "sampler_function", None), "__name__", "") == "sample_ar_video":
        raise ValueError(
            "sampler: SamplerARVideo keeps one attention cache, which base and tuned would share; take another "
            "sampler, or connect the base or the tuned MODEL alone."
        )


def _mixed(predictions: Mapping[int, Prediction], scales: Sequence[float], part: str) -> torch.Tensor:
    """The mix of one part of the needed predictions."""
    base = predictions.get(BASE)
    tuned = [index for index in sorted(predictions) if index != BASE]
    return mix(
        base and getattr(base, part),
        [getattr(predictions[index], part) for index in tuned],
        [scales[index] for index in tuned],
    )
