"""What the branches of a run predict at a step: in one call of the model where that is faster, or one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from comfy.patcher_extension import WrapperExecutor

from ..weights.deltas import RowsNotSeparable
from .approximation import BASE, lead
from .branch import TunedBranch
from .branch_options import Options
from .prediction import Prediction
from .settings import AUTO, TWO_PASSES, GuidanceSettings
from .shared_call import Part, SharedCalls, can_share_a_call, is_plain_cfg, with_uncond

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

logger = logging.getLogger(__name__)

# On a CPU a larger batch no longer fills idle cores and only spills the caches: measured, see benchmarks/.
_CPU_ONE_BATCH_LATENT_PIXELS = 8 * 32 * 32


class BranchCalls:
    """The calls of one run.

    Args:
        guider: the guider that samples.
        branches: the tuned models; the base model is the branch `BASE`.
        base_wrappers: PREDICT_NOISE wrappers of the base MODEL, the outermost first.
        settings: of the run.
    """

    def __init__(
        self,
        guider: CFGGuider,
        branches: Sequence[TunedBranch],
        base_wrappers: Sequence[Callable],
        settings: GuidanceSettings,
    ) -> None:
        self._guider = guider
        self._branches = branches
        self._base_wrappers = base_wrappers
        self._batching = settings.batching
        self._shared = SharedCalls()
        self._rows_separable = True

    def predict(
        self,
        needed: Sequence[int],
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
        uncond_of: int | None = None,
    ) -> dict[int, Prediction]:
        """What each of `needed` predicts.

        Args:
            needed: branches.
            options: model options for the base.
            x, timestep, seed: as a guider's `predict_noise` gets them.
            record: also note the parts of CFG.
            uncond_of: the branch among `needed` whose uncond all take; from `uncond_for_all`.
        """
        predictions: dict[int, Prediction] = {}
        record = record or uncond_of is not None
        parts = self._parts(needed, options, x)
        if parts and (uncond_of is None or uncond_of in parts):
            try:
                predictions = self._shared.predict(parts, self._guider, options, x, timestep, seed, record, uncond_of)
            except RowsNotSeparable as error:
                logger.info("RLG: rows cannot share a call (%s); the branches run one after another.", error)
                self._rows_separable = False
        left = [branch for branch in needed if branch not in predictions]
        for branch in sorted(left, key=lambda branch: branch != uncond_of):
            takes = None if uncond_of in (None, branch) else predictions[uncond_of].uncond
            predictions[branch] = self._alone(branch, options, x, timestep, seed, record, takes)
        return predictions

    def together(self, needed: Sequence[int], options: Options, x: torch.Tensor) -> int:
        """How many of `needed` are to be evaluated in one call; 0 where each has its own."""
        return len(self._parts(needed, options, x))

    def uncond_for_all(self, scales: Sequence[float], needed: Sequence[int], options: Options) -> int | None:
        """The branch whose uncond may serve all of `needed`; None where each has to have its own, or there is but one.

        Args:
            scales: of each tuned model at this step.
            needed: branches.
            options: model options for the base.
        """
        guided = [branch for branch in needed if abs(self._cfg(branch) - 1.0) >= 1e-9]
        if len(guided) < 2 or any(self._wrappers(branch) for branch in guided):
            return None
        of_all = [options if branch == BASE else self._branches[branch].options(options) for branch in guided]
        plain = all(is_plain_cfg(self._guider, own) and not own.get("sampler_pre_cfg_function") for own in of_all)
        return lead(scales, guided) if plain else None

    def _wrappers(self, branch: int) -> Sequence[Callable]:
        return self._base_wrappers if branch == BASE else self._branches[branch].predict_wrappers

    def _cfg(self, branch: int) -> float:
        own = None if branch == BASE else self._branches[branch].tuned.settings.tuned_cfg
        return self._guider.cfg if own is None else own

    def _parts(self, needed: Sequence[int], options: Options, x: torch.Tensor) -> dict[int, Part]:
        """The branches among `needed` that can and should be one model call; empty where none should."""
        if self._batching == TWO_PASSES or not self._rows_separable or self._base_wrappers:
            return {}
        if not can_share_a_call(self._guider, options):
            return {}
        conds = self._guider.conds
        parts = {}
        if BASE in needed:
            parts[BASE] = Part(conds.get("positive"), conds.get("negative"), self._guider.cfg, options, None)
        for index, branch in enumerate(self._branches):
            if index in needed and branch.deltas is not None and not branch.has_own_options:
                positive, negative = branch.conds.get("positive"), branch.conds.get("negative")
                parts[index] = Part(positive, negative, self._cfg(index), branch.options(options), branch.deltas)
        if len(parts) < 2 or (self._batching == AUTO and _fills_cpu(len(parts), x)):
            return {}
        return parts

    def _alone(
        self,
        index: int,
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
        uncond: torch.Tensor | None,
    ) -> Prediction:
        """What the guider predicts with the model, conds, options and CFG of a branch; `uncond` in place of its own."""
        prediction = Prediction()
        with ExitStack() as stack:
            if index != BASE:
                stack.enter_context(self._acting_for(self._branches[index]))
                options = self._branches[index].options(options)
            if uncond is not None:
                options = with_uncond(options, uncond)
            predict = WrapperExecutor.new_class_executor(
                self._guider.predict_noise, self._guider, self._wrappers(index)
            )
            prediction.x0 = predict.execute(x, timestep, prediction.recording(options) if record else options, seed)
        return prediction

    @contextmanager
    def _acting_for(self, branch: TunedBranch) -> Iterator[None]:
        """Give the guider the model, conds and CFG of a branch."""
        own = {"inner_model": branch.model, "conds": branch.conds}
        if branch.tuned.settings.tuned_cfg is not None:
            own["cfg"] = branch.tuned.settings.tuned_cfg
        saved = {name: getattr(self._guider, name) for name in own}
        try:
            for name, value in own.items():
                setattr(self._guider, name, value)
            yield
        finally:
            for name, value in saved.items():
                setattr(self._guider, name, value)


def _fills_cpu(branches: int, x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and 2 * branches * x.shape[0] * x[0, 0].numel() > _CPU_ONE_BATCH_LATENT_PIXELS
