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
from .approximation import BASE, EXACT, Directions, lead
from .branch import RunInputs, TunedBranch
from .branch_calls import BranchCalls
from .branch_options import KEY, Options
from .mixing import base_coefficient, mix
from .prediction import KnownPredictions, Prediction
from .settings import GuidanceSettings

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Step:
    """Scale of each tuned model at one step, the branches that the mix then depends on, and whether it may be rough."""

    scales: tuple[float, ...]
    needed: tuple[int, ...]
    approximate: bool


class GuidedRun:
    """State of one run; made when sampling starts and dropped with the run's model options.

    Args:
        guider: the guider that samples (stock or another pack's).
        branches: the tuned models.
        base_wrappers: PREDICT_NOISE wrappers of the base MODEL, the outermost first.
        settings: those that hold for the whole run.
        latent_shapes: as the host passes it to `outer_sample`.
        known: predictions in common with other runs of a sweep.
        whole: sigmas of the run that this one is a part of; None where it is whole.
    """

    def __init__(
        self,
        guider: CFGGuider,
        branches: Sequence[TunedBranch],
        base_wrappers: Sequence[Callable],
        settings: GuidanceSettings,
        latent_shapes: Any,
        known: KnownPredictions | None = None,
        whole: Sequence[float] | None = None,
    ) -> None:
        self._guider = guider
        self._branches = list(branches)
        self._base_wrappers = list(base_wrappers)
        self._calls = BranchCalls(guider, self._branches, self._base_wrappers, settings)
        self._approximation = settings.approximation
        self._directions = Directions(settings.approximation.direction_every)
        self._known = known
        self._whole = whole
        self._sigmas: Sequence[float] = []
        self._steps: list[_Step] = []
        self._steps_differ = False
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
        later = [w for w in present if not any(w is own for own in self._base_wrappers)]
        wrappers = options["transformer_options"]["wrappers"]
        wrappers[WrappersMP.PREDICT_NOISE] = {KEY: [*later, self.predict_noise]}
        wrappers.setdefault(WrappersMP.PREPARE_SAMPLING, {})[KEY] = [self.prepare_sampling]
        wrappers.setdefault(WrappersMP.SAMPLER_SAMPLE, {})[KEY] = [self.sampler_sample]

    def prepare_sampling(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """PREPARE_SAMPLING wrapper: the host is about to load the models.

        The deltas take their place first. It then finds that much less memory free, and loads fewer weights if need be.
        """
        for branch in self._branches:
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
        inputs = RunInputs(noise, latent_image, denoise_mask, extra_args.get("seed"), self._latent_shapes)
        with ExitStack() as stack:
            for branch in self._branches:
                stack.enter_context(branch.ready(self._raw_conds, inputs))
            # Control nets remember the model they were prepared for last, and take its sigmas.
            for conds in guider.conds.values():
                comfy.samplers.pre_run_control(guider.inner_model, conds)
            self._sigmas = self._whole or sigmas.tolist()
            self._steps = self._plan_steps()
            self._steps_differ = len(set(self._steps)) > 1 or self._approximation.direction_every > 1
            self._announce(extra_args["model_options"], noise)
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)

    def predict_noise(
        self,
        executor: WrapperExecutor,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: Options | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: the guided x0 at this step, shaped like `x`."""
        options, sampler_hooks = self._without_sampler_hooks(model_options or {})
        record = bool(sampler_hooks)
        step = self._step_at(timestep)
        scales, needed = self._steps[step].scales, self._steps[step].needed
        predictions = self._known.at(step, x, timestep) if self._known else {}
        missing = [branch for branch in needed if branch not in predictions]
        predictions.update(self._predict(step, missing, options, x, timestep, seed, record))
        predictions = {branch: predictions[branch] for branch in needed}
        mixed = _mixed(predictions, scales, "x0")
        if self._known:
            mixed = mixed.clone()  # a sampler may work in place on what it gets
        if not record or any(p.cond is None for p in predictions.values()):
            return mixed
        return self._through_sampler_hooks(sampler_hooks, mixed, predictions, scales, options, x, timestep)

    def _plan_steps(self) -> list[_Step]:
        count = len(self._sigmas) - 1
        scales = zip(*(branch.tuned.settings.schedule.per_step(count) for branch in self._branches), strict=True)
        approximate = self._approximation.per_step(count)
        return [_Step(s, tuple(_needed(s)), rough) for s, rough in zip(scales, approximate, strict=True)]

    def _step_at(self, timestep: torch.Tensor) -> int:
        # Reading the noise level makes the processor wait for a GPU: only where steps differ.
        if self._steps_differ or self._known:
            return step_index(float(timestep.max()), self._sigmas)
        return 0

    def _predict(
        self,
        step: int,
        branches: Sequence[int],
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
    ) -> dict[int, Prediction]:
        """What `branches` predict at a step, as exactly as the run asks for."""
        scales = self._steps[step].scales
        approximation = self._approximation if self._steps[step].approximate else EXACT
        reuses = approximation.direction_every > 1 and len(branches) > 1
        evaluated = list(branches)
        if reuses and self._directions.known_at(step, branches):
            evaluated = [lead(scales, branches)]
        uncond_of = self._calls.uncond_for_all(scales, evaluated, options) if approximation.shared_uncond else None
        predictions = self._calls.predict(evaluated, options, x, timestep, seed, record, uncond_of)
        if not reuses:
            return predictions
        if len(evaluated) == 1:
            return self._directions.complete(branches, evaluated[0], predictions[evaluated[0]])
        self._directions.learn(step, predictions)
        return predictions

    def _without_sampler_hooks(self, options: Options) -> tuple[Options, list[Callable]]:
        """Split off the post-CFG functions that the sampler itself put on top of the MODEL's."""
        functions = options.get("sampler_post_cfg_function", [])
        if len(functions) == self._own_post_cfg:
            return options, []
        own, hooks = functions[: self._own_post_cfg], functions[self._own_post_cfg :]
        return {**options, "sampler_post_cfg_function": own}, hooks

    def _through_sampler_hooks(
        self,
        hooks: Sequence[Callable],
        mixed: torch.Tensor,
        predictions: Mapping[int, Prediction],
        scales: Sequence[float],
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """Let a sampler that looks into CFG (euler_cfg_pp and its kin) see the guided predictions."""
        arguments = {
            "cond_denoised": _mixed(predictions, scales, "cond"),
            "uncond_denoised": _mixed(predictions, scales, "uncond"),
            "cond": self._guider.conds.get("positive"),
            "uncond": self._guider.conds.get("negative"),
            "cond_scale": self._guider.cfg,
            "model": self._guider.inner_model,
            "model_options": options,
            "sigma": timestep,
            "input": x,
        }
        for hook in hooks:
            mixed = hook({"denoised": mixed, **arguments})
        return mixed

    def _announce(self, options: Options, x: torch.Tensor) -> None:
        largest = max(self._steps, key=lambda step: len(step.needed), default=_Step((), (), False))
        together = self._calls.together(largest.needed, options, x)
        adapted = sum(len(b.deltas.modules) for b in self._branches if b.deltas)
        weights = f"shared weights, {adapted} adapted modules" if adapted else "two sets of weights"
        passes = f"{together} branches in one batch" if together else "branches one after another"
        patches = ", each with the patches of its own MODEL" if any(b.has_own_options for b in self._branches) else ""
        schedules = [branch.tuned.settings.schedule for branch in self._branches]
        # Runs that belong together have a line of their own.
        level = logging.DEBUG if self._known or self._whole else logging.INFO
        logger.log(level, "RLG: scale %s, %s, %s%s", "; ".join(map(str, schedules)), weights, passes, patches)
        if self._approximation != EXACT:
            logger.log(level, "RLG: approximate: %s", self._approximation)
        shared_uncond = self._approximation.shared_uncond
        if shared_uncond and self._calls.uncond_for_all(largest.scales, largest.needed, options) is None:
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


def _needed(scales: Sequence[float]) -> list[int]:
    """The branches that the mix at these scales depends on."""
    base = [BASE] if base_coefficient(scales) != 0.0 else []
    return base + [index for index, scale in enumerate(scales) if scale != 0.0]


def _mixed(predictions: Mapping[int, Prediction], scales: Sequence[float], part: str) -> torch.Tensor:
    """The mix of one part of the needed predictions."""
    base = predictions.get(BASE)
    tuned = [index for index in sorted(predictions) if index != BASE]
    return mix(
        base and getattr(base, part),
        [getattr(predictions[index], part) for index in tuned],
        [scales[index] for index in tuned],
    )
