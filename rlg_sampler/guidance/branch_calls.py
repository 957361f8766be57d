"""What the models of a mix predict in one evaluation: in one call where that is faster, or one after another."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from comfy.patcher_extension import WrapperExecutor

from ..weights.deltas import ALL_ROWS, RowsNotSeparable
from .approximation import lead
from .branch import Branch
from .branch_options import Options
from .model_state import BranchStates
from .prediction import Evaluation, Prediction
from .settings import AUTO, TWO_PASSES
from .shared_call import SharedCalls, can_share_a_call, is_plain_cfg, with_uncond

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

logger = logging.getLogger(__name__)

# On a CPU a larger batch no longer fills idle cores and only spills the caches: measured, see benchmarks/.
_CPU_ONE_BATCH_LATENT_PIXELS = 8 * 32 * 32


class BranchCalls:
    """The calls of one run.

    Args:
        guider: the guider that samples.
        branches: model of the mix → its branch, the base model first.
        batching: one of `BATCHING`.
    """

    def __init__(self, guider: CFGGuider, branches: Mapping[int, Branch], batching: str) -> None:
        self._guider = guider
        self._branches = branches
        self._batching = batching
        self._shared = SharedCalls()
        self._rows_separable = True
        self._states: dict[int, BranchStates] = {}
        """By the model that they are of."""

    def predict(
        self, models: Sequence[int], evaluation: Evaluation, uncond_of: int | None = None
    ) -> dict[int, Prediction]:
        """What each of `models` predicts.

        Args:
            models: of the mix.
            evaluation: what the sampler asks for.
            uncond_of: the model among them whose uncond all take; from `uncond_for_all`.
        """
        if uncond_of is not None:
            evaluation = replace(evaluation, with_cfg_parts=True)
        predictions: dict[int, Prediction] = {}
        together = self.together(models, evaluation.options, evaluation.x)
        if together and (uncond_of is None or uncond_of in together):
            try:
                predictions = self._shared.predict(together, self._guider.inner_model, evaluation, uncond_of)
            except RowsNotSeparable as error:
                logger.info("RLG: rows cannot share a call (%s); the branches run one after another.", error)
                self._rows_separable = False
        left = [model for model in models if model not in predictions]
        for model in sorted(left, key=lambda model: model != uncond_of):
            takes = None if uncond_of in (None, model) else predictions[uncond_of].uncond
            branch = self._branches[model]
            with self._states_on(branch.model.diffusion_model).of(model):
                predictions[model] = self._alone(branch, evaluation, takes)
        return predictions

    def leave(self) -> None:
        """After the last call."""
        for states in self._states.values():
            states.leave()

    def _states_on(self, model: torch.nn.Module) -> BranchStates:
        if id(model) not in self._states:
            self._states[id(model)] = BranchStates(model)
        return self._states[id(model)]

    def together(self, models: Sequence[int], options: Options, x: torch.Tensor) -> dict[int, Branch]:
        """Those of `models` that can and should be one call of the model; empty where each has its own."""
        if self._batching == TWO_PASSES or not self._rows_separable or not can_share_a_call(self._guider, options):
            return {}
        branches = {m: branch for m, branch in self._branches.items() if m in models and branch.may_share_a_call}
        if len(branches) < 2 or (self._batching == AUTO and _fills_cpu(len(branches), x)):
            return {}
        return branches

    def uncond_for_all(self, scales: Sequence[float], models: Sequence[int], options: Options) -> int | None:
        """The model whose uncond may serve all of `models`; None where each has to have its own, or there is but one.

        Args:
            scales: of each tuned model at this step.
            models: of the mix.
            options: model options for the base model.
        """
        guided = [model for model in models if abs(self._branches[model].cfg - 1.0) >= 1e-9]
        branches = [self._branches[model] for model in guided]
        if len(guided) < 2 or any(branch.predict_wrappers for branch in branches):
            return None
        of_all = [branch.options(options) for branch in branches]
        plain = all(is_plain_cfg(self._guider, own) and not own.get("sampler_pre_cfg_function") for own in of_all)
        return lead(scales, guided) if plain else None

    def _alone(self, branch: Branch, evaluation: Evaluation, uncond: torch.Tensor | None) -> Prediction:
        """What the guider predicts when it stands for `branch`; `uncond` in place of its own."""
        prediction = Prediction()
        # Some control nets compute with parts of the model, before it is called.
        of_branch = branch.deltas.applied_to(ALL_ROWS) if branch.deltas else nullcontext()
        with branch.in_guider(), of_branch:
            options = branch.options(evaluation.options)
            if uncond is not None:
                options = with_uncond(options, uncond)
            if evaluation.with_cfg_parts:
                options = prediction.recording(options)
            predict = WrapperExecutor.new_class_executor(
                self._guider.predict_noise, self._guider, branch.predict_wrappers
            )
            prediction.x0 = predict.execute(evaluation.x, evaluation.sigma, options, evaluation.seed)
        return prediction


def _fills_cpu(branches: int, x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and 2 * branches * x.shape[0] * x[0, 0].numel() > _CPU_ONE_BATCH_LATENT_PIXELS
