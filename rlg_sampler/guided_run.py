"""One sampling run of a guided MODEL: evaluates the branches at each step and mixes them.

A branch's x0 is what its MODEL gives at this step in a stock sampler: its own conds, CFG and post-CFG patches. The
mix comes after, so it is right for non-linear guidance too, and it is the order of the RLG reference.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, merge_nested_dicts

from .branch_options import Options, added_options, with_wrapper_first
from .deltas import ALL_ROWS, Deltas, Rows, RowsNotSeparable
from .mixing import base_coefficient, mix

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

logger = logging.getLogger(__name__)

KEY = "rlg"
Conds = dict[str, list[dict[str, Any]]]

# With any of these in its options a call is not a plain evaluation of the listed conds: keep the branches apart.
_OWN_EVALUATION = ("model_function_wrapper", "sampler_calc_cond_batch_function", "context_handler", "multigpu_clones")
# On a CPU a larger batch no longer fills idle cores and only spills the caches: measured, see benchmarks/.
_CPU_ONE_BATCH_LATENT_PIXELS = 4 * 32 * 32


@dataclass
class TunedBranch:
    """One tuned model during a run.

    Attributes:
        scale: s_k of the mix.
        cfg: its CFG scale; None takes the sampler's.
        patcher: the loaded MODEL it is evaluated on (the base's, where weights are shared).
        deltas: what turns the base's weights into its own; None for a checkpoint of its own.
        own_options: model options of its MODEL where they differ from the base's, else None.
        base_options: the base MODEL's own options, to tell later additions from.
    """

    scale: float
    cfg: float | None
    patcher: ModelPatcher
    deltas: Deltas | None
    own_options: Options | None
    base_options: Options
    conds: Conds = field(default_factory=dict)

    @property
    def model(self) -> BaseModel:
        return self.patcher.model

    def options(self, current: Options) -> Options:
        """Model options for this branch, given those the sampler passes for the base."""
        if self.own_options is not None:
            current = merge_nested_dicts(self.own_options, added_options(current, self.base_options))
        # Split over several GPUs the host would evaluate copies of the base model, without deltas: use one GPU.
        current = {k: v for k, v in current.items() if k != "multigpu_clones"}
        if self.deltas is None:
            return current
        return with_wrapper_first(current, WrappersMP.APPLY_MODEL, KEY, self._on_all_rows)

    def _on_all_rows(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.deltas.applied_to(ALL_ROWS):
            return executor(*args, **kwargs)


@dataclass
class _Prediction:
    x0: torch.Tensor
    cond: torch.Tensor | None = None
    uncond: torch.Tensor | None = None


class GuidedRun:
    """State of one run; made when sampling starts and dropped with the run's model options.

    Args:
        guider: the guider that samples (stock or another pack's).
        branches: the tuned models with their scales.
        latent_shapes: as the host passes it to `outer_sample`.
    """

    def __init__(self, guider: CFGGuider, branches: Sequence[TunedBranch], latent_shapes: Any) -> None:
        self._guider = guider
        self._branches = list(branches)
        self._scales = [branch.scale for branch in branches]
        self._latent_shapes = latent_shapes
        # The host prepares the guider's own dictionaries for the base model; the tuned branches start from these.
        self._raw_conds = {name: [c.copy() for c in conds] for name, conds in guider.conds.items()}
        self._own_post_cfg = len(guider.model_options.get("sampler_post_cfg_function", []))
        self._rows_separable = True
        self._announced = False

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
        with ExitStack() as stack:
            for branch in self._branches:
                stack.enter_context(self._prepared(branch, noise, latent_image, denoise_mask, extra_args.get("seed")))
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)

    @contextmanager
    def _prepared(
        self,
        branch: TunedBranch,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None,
        denoise_mask: torch.Tensor | None,
        seed: int | None,
    ) -> Iterator[None]:
        # Ids of their own: patches that cache per cond must not take the tuned branch for the base.
        conds = {name: [{**c, "uuid": uuid.uuid4()} for c in cs] for name, cs in self._raw_conds.items()}
        with ExitStack() as stack:
            if branch.deltas is None:
                comfy.sampler_helpers.prepare_model_patcher(branch.patcher, conds, {"transformer_options": {}})
                stack.callback(branch.patcher.restore_hook_patches)
                branch.patcher.pre_run()
                stack.callback(branch.patcher.cleanup)
            else:
                branch.deltas = branch.deltas.to(noise.device, _compute_dtype(branch.model))
                stack.enter_context(branch.deltas.attached(branch.model))
            with branch.deltas.applied_to(ALL_ROWS) if branch.deltas else ExitStack():
                branch.conds = comfy.samplers.process_conds(
                    branch.model,
                    noise,
                    conds,
                    noise.device,
                    latent_image,
                    denoise_mask,
                    seed,
                    latent_shapes=self._latent_shapes,
                )
            yield

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
        together = self._evaluated_together(options, x)
        predictions: dict[int, _Prediction] = {}
        if together:
            try:
                predictions = self._predict_together(together, options, x, timestep, seed, record)
            except RowsNotSeparable as error:
                logger.info("RLG: this model mixes batch rows inside (%s); the branches run one after another.", error)
                self._rows_separable = False
        self._announce(len(predictions))
        if _BASE not in predictions and base_coefficient(self._scales) != 0.0:
            predictions[_BASE] = self._predict_base(executor, options, x, timestep, seed, record)
        for index, branch in enumerate(self._branches):
            if index not in predictions:
                predictions[index] = self._predict_tuned(branch, options, x, timestep, seed, record)
        mixed = self._mixed(predictions, "x0")
        if not record or any(p.cond is None for p in predictions.values()):
            return mixed
        # A sampler that looks into CFG (euler_cfg_pp and its kin) must see the guided predictions.
        arguments = {
            "cond_denoised": self._mixed(predictions, "cond"),
            "uncond_denoised": self._mixed(predictions, "uncond"),
            "cond": self._guider.conds.get("positive"),
            "uncond": self._guider.conds.get("negative"),
            "cond_scale": self._guider.cfg,
            "model": self._guider.inner_model,
            "model_options": options,
            "sigma": timestep,
            "input": x,
        }
        for hook in sampler_hooks:
            mixed = hook({"denoised": mixed, **arguments})
        return mixed

    def _without_sampler_hooks(self, options: Options) -> tuple[Options, list[Callable]]:
        """Split off the post-CFG functions that the sampler itself put on top of the MODEL's."""
        functions = options.get("sampler_post_cfg_function", [])
        if len(functions) == self._own_post_cfg:
            return options, []
        own, hooks = functions[: self._own_post_cfg], functions[self._own_post_cfg :]
        return {**options, "sampler_post_cfg_function": own}, hooks

    def _mixed(self, predictions: Mapping[int, _Prediction], part: str) -> torch.Tensor:
        base = predictions.get(_BASE)
        tuned = [getattr(predictions[i], part) for i in range(len(self._branches))]
        return mix(base and getattr(base, part), tuned, self._scales)

    def _predict_base(
        self,
        executor: WrapperExecutor,
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
    ) -> _Prediction:
        options, prediction = _recording(options) if record else (options, None)
        x0 = executor(x, timestep, options, seed)
        return _finished(prediction, x0)

    def _predict_tuned(
        self,
        branch: TunedBranch,
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
    ) -> _Prediction:
        options = branch.options(options)
        options, prediction = _recording(options) if record else (options, None)
        of_branch = {"inner_model": branch.model, "conds": branch.conds}
        if branch.cfg is not None:
            of_branch["cfg"] = branch.cfg
        wrappers = options.get("transformer_options", {}).get("wrappers", {}).get(WrappersMP.PREDICT_NOISE, {})
        others = [w for key, ws in wrappers.items() if key != KEY for w in ws]
        with _attributes(self._guider, of_branch):
            predict = WrapperExecutor.new_class_executor(self._guider.predict_noise, self._guider, others)
            x0 = predict.execute(x, timestep, options, seed)
        return _finished(prediction, x0)

    def _evaluated_together(self, options: Options, x: torch.Tensor) -> list[int]:
        """The branches that can and should be one model call; empty to run them one after another."""
        stock = type(self._guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        wrappers = options.get("transformer_options", {}).get("wrappers", {})
        others = [k for kind in (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH) for k in wrappers.get(kind, {})]
        # Control nets of other packs read cond_or_uncond before we can give them the 0 and 1 they expect.
        control = any("control" in c for conds in self._guider.conds.values() for c in conds)
        if (
            not self._rows_separable
            or not stock
            or control
            or set(others) - {KEY}
            or any(options.get(k) is not None for k in _OWN_EVALUATION)
        ):
            return []
        indices = [i for i, b in enumerate(self._branches) if b.deltas is not None and b.own_options is None]
        if base_coefficient(self._scales) != 0.0:
            indices.insert(0, _BASE)
        rows = 2 * x.shape[0] * len(indices)
        fills_cpu = x.device.type == "cpu" and rows * x[0, 0].numel() > _CPU_ONE_BATCH_LATENT_PIXELS
        return [] if fills_cpu or len(indices) < 2 else indices

    def _predict_together(
        self,
        indices: Sequence[int],
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
    ) -> dict[int, _Prediction]:
        """Evaluate several branches on the same weights in one call of the host's `calc_cond_batch`."""
        guider = self._guider
        settings = {}
        conds: list[list[dict] | None] = []
        for index in indices:
            branch = None if index == _BASE else self._branches[index]
            cfg = guider.cfg if branch is None or branch.cfg is None else branch.cfg
            of_branch = guider.conds if branch is None else branch.conds
            positive, negative = of_branch.get("positive"), of_branch.get("negative")
            settings[index] = (cfg, positive, negative, options if branch is None else branch.options(options))
            skip_uncond = abs(cfg - 1.0) < 1e-9 and not options.get("disable_cfg1_optimization", False)
            conds += [positive, None if skip_uncond else negative]
        routed = with_wrapper_first(options, WrappersMP.APPLY_MODEL, KEY, _RowRouter(indices, self._branches))
        outputs = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, routed)
        predictions = {}
        for position, index in enumerate(indices):
            cfg, positive, negative, of_branch = settings[index]
            pair = outputs[2 * position : 2 * position + 2]
            # The host's own CFG with these outputs in place of the model's.
            of_branch = {**of_branch, "sampler_calc_cond_batch_function": lambda _, pair=pair: pair}
            of_branch, prediction = _recording(of_branch) if record else (of_branch, None)
            x0 = comfy.samplers.sampling_function(
                guider.inner_model, x, timestep, negative, positive, cfg, model_options=of_branch, seed=seed
            )
            predictions[index] = _finished(prediction, x0)
        return predictions

    def _announce(self, together: int) -> None:
        if self._announced:
            return
        self._announced = True
        adapted = sum(len(b.deltas.modules) for b in self._branches if b.deltas)
        weights = f"shared weights, {adapted} adapted modules" if adapted else "two sets of weights"
        passes = f"{together} branches in one batch" if together else "branches one after another"
        patches = ", each with the patches of its own MODEL" if any(b.own_options for b in self._branches) else ""
        scales = ", ".join(f"{s:g}" for s in self._scales)
        logger.info("RLG: scale %s, %s, %s%s", scales, weights, passes, patches)


_BASE = -1


class _RowRouter:
    """APPLY_MODEL wrapper of a shared call: entry 2·i of the cond list is branch i's positive, 2·i+1 its negative."""

    def __init__(self, indices: Sequence[int], branches: Sequence[TunedBranch]) -> None:
        self._deltas = [None if index == _BASE else branches[index].deltas for index in indices]

    def __call__(self, executor: WrapperExecutor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        *before, transformer_options = args[:5]
        entries = transformer_options["cond_or_uncond"]
        size = x.shape[0] // len(entries)
        with ExitStack() as stack:
            for position, deltas in enumerate(self._deltas):
                # The host keeps entries in the order of the cond list, so a branch's rows lie side by side.
                own = [n for n, entry in enumerate(entries) if entry // 2 == position]
                if deltas is not None and own:
                    rows = Rows(own[0] * size, (own[-1] + 1) * size, x.shape[0])
                    stack.enter_context(deltas.applied_to(rows))
            # Patches of other packs expect 0 for a positive and 1 for a negative.
            transformer_options = {**transformer_options, "cond_or_uncond": [entry % 2 for entry in entries]}
            return executor(x, *before, transformer_options, *args[5:], **kwargs)


def _recording(options: Options) -> tuple[Options, _Prediction]:
    """Options whose CFG also notes the conditional and unconditional predictions."""
    prediction = _Prediction(x0=torch.empty(0))

    def note(args: dict[str, Any]) -> torch.Tensor:
        prediction.cond, prediction.uncond = args["cond_denoised"], args["uncond_denoised"]
        return args["denoised"]

    return {**options, "sampler_post_cfg_function": [*options.get("sampler_post_cfg_function", []), note]}, prediction


def _finished(prediction: _Prediction | None, x0: torch.Tensor) -> _Prediction:
    if prediction is None:
        return _Prediction(x0)
    prediction.x0 = x0
    return prediction


@contextmanager
def _attributes(target: object, values: Mapping[str, Any]) -> Iterator[None]:
    saved = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(target, name, value)


def _compute_dtype(model: BaseModel) -> torch.dtype:
    return model.manual_cast_dtype or model.get_dtype()
