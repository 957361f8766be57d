"""Several branches on the same weights in one call of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .branch_options import KEY, Options, with_wrapper_first
from .deltas import Deltas, Rows, RowsNotSeparable
from .prediction import Prediction

if TYPE_CHECKING:
    from comfy.samplers import CFGGuider

# With any of these in its options a call is not a plain evaluation of the listed conds: keep the branches apart.
_OWN_EVALUATION = ("model_function_wrapper", "sampler_calc_cond_batch_function", "context_handler", "multigpu_clones")


@dataclass(frozen=True)
class Part:
    """One branch of a shared call.

    Attributes:
        positive, negative: its prepared conds.
        cfg: its CFG scale.
        options: model options its CFG runs with.
        deltas: its corrections; None for the base model.
    """

    positive: list[dict] | None
    negative: list[dict] | None
    cfg: float
    options: Options
    deltas: Deltas | None


def can_share_a_call(guider: CFGGuider, options: Options) -> bool:
    """Whether the guider's step is the plain CFG of the host, so that branches may be evaluated together."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    return (
        type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        and not any(options.get(key) is not None for key in _OWN_EVALUATION)
        and not any(wrappers.get(WrappersMP.CALC_COND_BATCH, {}).values())
        # Control nets of other packs read cond_or_uncond before we can give them the 0 and 1 they expect.
        and not any("control" in cond for conds in guider.conds.values() for cond in conds)
    )


def predict_together(
    parts: Mapping[int, Part],
    guider: CFGGuider,
    options: Options,
    x: torch.Tensor,
    timestep: torch.Tensor,
    seed: int | None,
    record: bool,
) -> dict[int, Prediction]:
    """Evaluate the parts in one call of the host's `calc_cond_batch`, which splits it where memory asks for that.

    Args:
        parts: index of a branch → what it needs.
        guider: the guider that samples; its loaded model is the one whose weights the parts share.
        options: model options for the call.
        x, timestep, seed: as a guider's `predict_noise` gets them.
        record: also note the parts of CFG.

    Returns:
        index → prediction, shaped like `x`.

    Raises:
        RowsNotSeparable: the rows of a branch cannot be told apart in this model or these conds.
    """
    conds: list[list[dict] | None] = []
    for part in parts.values():
        # As the host decides it, where it evaluates one model.
        without = abs(part.cfg - 1.0) < 1e-9 and not part.options.get("disable_cfg1_optimization", False)
        conds += [part.positive, None if without else part.negative]
    routed = with_wrapper_first(options, WrappersMP.APPLY_MODEL, KEY, _RowRouter([p.deltas for p in parts.values()]))
    outputs = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, routed)
    predictions = {}
    for position, (index, part) in enumerate(parts.items()):
        pair = outputs[2 * position : 2 * position + 2]
        # The host's own CFG, with these outputs in place of the model's.
        of_part = {**part.options, "sampler_calc_cond_batch_function": lambda _, pair=pair: pair}
        prediction = predictions[index] = Prediction()
        prediction.x0 = comfy.samplers.sampling_function(
            guider.inner_model,
            x,
            timestep,
            part.negative,
            part.positive,
            part.cfg,
            model_options=prediction.recording(of_part) if record else of_part,
            seed=seed,
        )
    return predictions


class _RowRouter:
    """APPLY_MODEL wrapper: entry 2·i of the cond list is part i's positive, 2·i+1 its negative."""

    def __init__(self, deltas: Sequence[Deltas | None]) -> None:
        self._deltas = deltas

    def __call__(self, executor: WrapperExecutor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        *before, transformer_options = args[:5]
        entries = transformer_options["cond_or_uncond"]
        size = x.shape[0] // len(entries)
        with ExitStack() as stack:
            for position, deltas in enumerate(self._deltas):
                own = [n for n, entry in enumerate(entries) if entry // 2 == position]
                if deltas is None or not own:
                    continue
                if own[-1] - own[0] != len(own) - 1:  # the host puts default conds after all others
                    raise RowsNotSeparable("default conds put the rows of the branches between each other")
                stack.enter_context(deltas.applied_to(Rows(own[0] * size, (own[-1] + 1) * size, x.shape[0])))
            # Patches of other packs expect 0 for a positive and 1 for a negative.
            transformer_options = {**transformer_options, "cond_or_uncond": [entry % 2 for entry in entries]}
            return executor(x, *before, transformer_options, *args[5:], **kwargs)
