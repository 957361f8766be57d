"""One sampling run of a guided MODEL: evaluates the branches at each step and mixes them.

A branch's x0 is what its MODEL gives at this step in a stock sampler: its own conds, CFG and post-CFG patches. The
mix comes after, so it is right for non-linear guidance too, and it is the order of the RLG reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from .branch import RunInputs, TunedBranch
from .branch_options import KEY, Options
from .deltas import RowsNotSeparable
from .mixing import base_coefficient, mix
from .plan import SharedEvaluations
from .prediction import Prediction
from .schedule import step_index
from .shared_call import Part, SharedCalls, can_share_a_call

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

logger = logging.getLogger(__name__)

# How the branches that share weights are evaluated. "auto" puts them into one batch where that is faster; in each case
# the host splits a batch that does not fit into memory.
BATCHING = AUTO, ONE_BATCH, TWO_PASSES = "auto", "one batch", "two passes"

# On a CPU a larger batch no longer fills idle cores and only spills the caches: measured, see benchmarks/.
_CPU_ONE_BATCH_LATENT_PIXELS = 8 * 32 * 32
_BASE = -1  # index of the base model among the branches


@dataclass(frozen=True)
class _Step:
    """Scale of each tuned model at one step, and the branches that the mix then depends on."""

    scales: tuple[float, ...]
    needed: tuple[int, ...]


class GuidedRun:
    """State of one run; made when sampling starts and dropped with the run's model options.

    Args:
        guider: the guider that samples (stock or another pack's).
        branches: the tuned models.
        base_wrappers: PREDICT_NOISE wrappers of the base MODEL, the outermost first.
        latent_shapes: as the host passes it to `outer_sample`.
        shared: predictions in common with other runs of a sweep.
        whole: sigmas of the run that this one is a part of; None where it is whole.
        batching: one of `BATCHING`.
    """

    def __init__(
        self,
        guider: CFGGuider,
        branches: Sequence[TunedBranch],
        base_wrappers: Sequence[Callable],
        latent_shapes: Any,
        shared: SharedEvaluations | None = None,
        whole: Sequence[float] | None = None,
        batching: str = AUTO,
    ) -> None:
        self._guider = guider
        self._branches = list(branches)
        self._base_wrappers = list(base_wrappers)
        self._shared = shared
        self._whole = whole
        self._batching = batching
        self._sigmas: Sequence[float] = []
        self._steps: list[_Step] = []
        self._steps_differ = False
        self._calls = SharedCalls()
        self._latent_shapes = latent_shapes
        # The host prepares the guider's own dictionaries for the base model; the tuned branches start from these.
        self._raw_conds = {name: [c.copy() for c in conds] for name, conds in guider.conds.items()}
        self._own_post_cfg = len(guider.model_options.get("sampler_post_cfg_function", []))
        self._rows_separable = True

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
            self._steps_differ = len(set(self._steps)) > 1
            most_needed = max((step.needed for step in self._steps), key=len, default=())
            self._announce(len(self._shared_parts(extra_args["model_options"], noise, most_needed)))
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
        predictions = self._shared.at(step, x, timestep) if self._shared else {}
        missing = [branch for branch in needed if branch not in predictions]
        if parts := self._shared_parts(options, x, missing):
            try:
                predictions.update(self._calls.predict(parts, self._guider, options, x, timestep, seed, record))
            except RowsNotSeparable as error:
                logger.info("RLG: rows cannot share a call (%s); the branches run one after another.", error)
                self._rows_separable = False
        for index in missing:
            if index in predictions:
                continue
            if index == _BASE:
                predictions[_BASE] = self._predict(self._base_wrappers, options, x, timestep, seed, record)
                continue
            branch = self._branches[index]
            with self._acting_for(branch):
                predictions[index] = self._predict(
                    branch.predict_wrappers, branch.options(options), x, timestep, seed, record
                )
        predictions = {branch: predictions[branch] for branch in needed}
        mixed = _mixed(predictions, scales, "x0")
        if self._shared:
            mixed = mixed.clone()  # a sampler may work in place on what it gets
        if not record or any(p.cond is None for p in predictions.values()):
            return mixed
        return self._through_sampler_hooks(sampler_hooks, mixed, predictions, scales, options, x, timestep)

    def _plan_steps(self) -> list[_Step]:
        count = len(self._sigmas) - 1
        scales = zip(*(branch.tuned.schedule.per_step(count) for branch in self._branches), strict=True)
        return [_Step(of_step, tuple(_needed(of_step))) for of_step in scales]

    def _step_at(self, timestep: torch.Tensor) -> int:
        # Reading the noise level makes the processor wait for a GPU: only where steps differ.
        if self._steps_differ or self._shared:
            return step_index(float(timestep.max()), self._sigmas)
        return 0

    def _shared_parts(self, options: Options, x: torch.Tensor, needed: Sequence[int]) -> dict[int, Part]:
        """The branches among `needed` that can and should be one model call; empty where none should."""
        if self._batching == TWO_PASSES or not self._rows_separable or self._base_wrappers:
            return {}
        if not can_share_a_call(self._guider, options):
            return {}
        conds, cfg = self._guider.conds, self._guider.cfg
        parts = {}
        if _BASE in needed:
            parts[_BASE] = Part(conds.get("positive"), conds.get("negative"), cfg, options, None)
        for index, branch in enumerate(self._branches):
            if index in needed and branch.deltas is not None and not branch.has_own_options:
                own_cfg = cfg if branch.tuned.cfg is None else branch.tuned.cfg
                positive, negative = branch.conds.get("positive"), branch.conds.get("negative")
                parts[index] = Part(positive, negative, own_cfg, branch.options(options), branch.deltas)
        if len(parts) < 2 or (self._batching == AUTO and _fills_cpu(len(parts), x)):
            return {}
        return parts

    def _predict(
        self,
        wrappers: Sequence[Callable],
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
    ) -> Prediction:
        """What the guider, as it stands, predicts with these options and PREDICT_NOISE wrappers."""
        prediction = Prediction()
        predict = WrapperExecutor.new_class_executor(self._guider.predict_noise, self._guider, wrappers)
        prediction.x0 = predict.execute(x, timestep, prediction.recording(options) if record else options, seed)
        return prediction

    @contextmanager
    def _acting_for(self, branch: TunedBranch) -> Iterator[None]:
        """Give the guider the model, conds and CFG of a branch."""
        own = {"inner_model": branch.model, "conds": branch.conds}
        if branch.tuned.cfg is not None:
            own["cfg"] = branch.tuned.cfg
        saved = {name: getattr(self._guider, name) for name in own}
        try:
            for name, value in own.items():
                setattr(self._guider, name, value)
            yield
        finally:
            for name, value in saved.items():
                setattr(self._guider, name, value)

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

    def _announce(self, together: int) -> None:
        adapted = sum(len(b.deltas.modules) for b in self._branches if b.deltas)
        weights = f"shared weights, {adapted} adapted modules" if adapted else "two sets of weights"
        passes = f"{together} branches in one batch" if together else "branches one after another"
        patches = ", each with the patches of its own MODEL" if any(b.has_own_options for b in self._branches) else ""
        schedules = [branch.tuned.schedule for branch in self._branches]
        # Runs that belong together have a line of their own.
        level = logging.DEBUG if self._shared or self._whole else logging.INFO
        logger.log(level, "RLG: scale %s, %s, %s%s", "; ".join(map(str, schedules)), weights, passes, patches)
        steps = len(self._sigmas) - 1
        for schedule in schedules:
            if unreached := schedule.unreached(steps):
                logger.warning(
                    "RLG: none of the %d steps takes scale %s of the schedule %s; widen its range or use more steps.",
                    steps, ", ".join(f"{s:g}" for s in unreached), schedule,
                )  # fmt: skip


def _fills_cpu(branches: int, x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and 2 * branches * x.shape[0] * x[0, 0].numel() > _CPU_ONE_BATCH_LATENT_PIXELS


def _needed(scales: Sequence[float]) -> list[int]:
    """The branches that the mix at these scales depends on."""
    base = [_BASE] if base_coefficient(scales) != 0.0 else []
    return base + [index for index, scale in enumerate(scales) if scale != 0.0]


def _mixed(predictions: Mapping[int, Prediction], scales: Sequence[float], part: str) -> torch.Tensor:
    """The mix of one part of the needed predictions."""
    base = predictions.get(_BASE)
    tuned = [index for index in sorted(predictions) if index != _BASE]
    return mix(
        base and getattr(base, part),
        [getattr(predictions[index], part) for index in tuned],
        [scales[index] for index in tuned],
    )
