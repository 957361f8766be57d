"""Several branches on the same weights in one call of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..weights.deltas import Deltas, Rows, RowsNotSeparable
from .branch_options import KEY, Options, with_wrapper_first
from .joined_conds import JoinedConds
from .prediction import Prediction

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
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

    @property
    def without_negative(self) -> bool:
        """As the host decides it, where it evaluates one model."""
        return abs(self.cfg - 1.0) < 1e-9 and not self.options.get("disable_cfg1_optimization", False)


def is_plain_cfg(guider: CFGGuider, options: Options) -> bool:
    """Whether the guider's step is the plain CFG of the host."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    return (
        type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        and not any(options.get(key) is not None for key in _OWN_EVALUATION)
        and not any(wrappers.get(WrappersMP.CALC_COND_BATCH, {}).values())
    )


def can_share_a_call(guider: CFGGuider, options: Options) -> bool:
    """Whether branches may be evaluated together."""
    # Control nets of other packs read cond_or_uncond before we can give them the 0 and 1 they expect.
    controlled = any("control" in cond for conds in guider.conds.values() for cond in conds)
    return is_plain_cfg(guider, options) and not controlled


def with_uncond(options: Options, uncond: torch.Tensor) -> Options:
    """Options whose CFG evaluates the cond alone, and takes `uncond` for the x0 without the prompt."""

    def evaluate(args: dict[str, Any]) -> list[torch.Tensor]:
        model, conds = args["model"], args["conds"][:1]
        return [*comfy.samplers.calc_cond_batch(model, conds, args["input"], args["sigma"], options), uncond]

    return {**options, "sampler_calc_cond_batch_function": evaluate}


class SharedCalls:
    """The calls of one run."""

    def __init__(self) -> None:
        self._joined = JoinedConds()
        self._apart = False  # whether memory asks for calls of a single cond
        self._checked: torch.Size | None = None

    def predict(
        self,
        parts: Mapping[int, Part],
        guider: CFGGuider,
        options: Options,
        x: torch.Tensor,
        timestep: torch.Tensor,
        seed: int | None,
        record: bool,
        uncond_of: int | None = None,
    ) -> dict[int, Prediction]:
        """Evaluate the parts in one call of the host's `calc_cond_batch`, which splits it where memory asks for that.

        Args:
            parts: index of a branch → what it needs.
            guider: the guider that samples; its loaded model is the one whose weights the parts share.
            options: model options for the call.
            x, timestep, seed: as a guider's `predict_noise` gets them.
            record: also note the parts of CFG.
            uncond_of: the part whose uncond all take; None where each has its own.

        Returns:
            index → prediction, shaped like `x`.

        Raises:
            RowsNotSeparable: the rows of a branch cannot be told apart in this model or these conds.
        """
        evaluate = self._evaluate if uncond_of is None else partial(_evaluate_with_one_uncond, uncond_of)
        outputs = evaluate(parts, guider.inner_model, options, x, timestep)
        predictions = {}
        for index, part in parts.items():
            # The host's own CFG, with these outputs in place of the model's.
            of_part = {**part.options, "sampler_calc_cond_batch_function": lambda _, of_part=outputs[index]: of_part}
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

    def _evaluate(
        self, parts: Mapping[int, Part], model: BaseModel, options: Options, x: torch.Tensor, timestep: torch.Tensor
    ) -> dict[int, list[torch.Tensor]]:
        """index → x0 of its positive and its negative cond."""
        deltas = [part.deltas for part in parts.values()]
        if joined := self._all_joined(parts, model, x):
            uuids = [(part.negative[0]["uuid"], part.positive[0]["uuid"]) for part in parts.values()]
            router = _JoinedRows(deltas, uuids, timestep)
            routed = with_wrapper_first(options, WrappersMP.APPLY_MODEL, KEY, router)
            twice = (torch.cat([x, x]), torch.cat([timestep, timestep]))
            outputs = comfy.samplers.calc_cond_batch(model, joined, *twice, routed)
            self._apart = router.was_split
            return {index: [*reversed(output.chunk(2))] for index, output in zip(parts, outputs, strict=True)}
        negatives = {index: None if part.without_negative else part.negative for index, part in parts.items()}
        return _evaluate_conds(parts, negatives, model, options, x, timestep)

    def _all_joined(self, parts: Mapping[int, Part], model: BaseModel, x: torch.Tensor) -> list[list[dict]] | None:
        if self._apart:
            return None
        conds = []
        for index, part in parts.items():
            cond = None if part.without_negative else self._joined.of(index, part.positive, part.negative, x.shape[0])
            if cond is None:
                return None
            conds.append([cond])
        if self._checked != x.shape:
            self._checked, self._apart = x.shape, not _fits(model, conds[0][0], x)
        return None if self._apart else conds


def _evaluate_with_one_uncond(
    uncond_of: int,
    parts: Mapping[int, Part],
    model: BaseModel,
    options: Options,
    x: torch.Tensor,
    timestep: torch.Tensor,
) -> dict[int, list[torch.Tensor]]:
    """As `SharedCalls._evaluate`, with the negative of one part for all."""
    negatives = {index: part.negative if index == uncond_of else None for index, part in parts.items()}
    outputs = _evaluate_conds(parts, negatives, model, options, x, timestep)
    _, uncond = outputs[uncond_of]
    return {index: [cond, uncond] for index, (cond, _) in outputs.items()}


def _evaluate_conds(
    parts: Mapping[int, Part],
    negatives: Mapping[int, list[dict] | None],
    model: BaseModel,
    options: Options,
    x: torch.Tensor,
    timestep: torch.Tensor,
) -> dict[int, list[torch.Tensor]]:
    """index → x0 of its positive and of the negative given for it, the host choosing which of them go together."""
    conds = [cond for index, part in parts.items() for cond in (part.positive, negatives[index])]
    router = _RowRouter([part.deltas for part in parts.values()])
    routed = with_wrapper_first(options, WrappersMP.APPLY_MODEL, KEY, router)
    outputs = comfy.samplers.calc_cond_batch(model, conds, x, timestep, routed)
    return {index: outputs[2 * n : 2 * n + 2] for n, index in enumerate(parts)}


def _fits(model: BaseModel, joined: dict, x: torch.Tensor) -> bool:
    """Whether the host, by its own estimate, would put the rows of a joined cond into one call."""
    shapes = {name: [part.size()] for name, part in joined["model_conds"].items()}
    needed = model.memory_required([2 * x.shape[0], *x.shape[1:]], cond_shapes=shapes)
    # Newer hosts ask the MODEL, whose weights may give way.
    free = getattr(model.current_patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return needed * 1.5 < free(x.device)


class _RowRouter:
    """APPLY_MODEL wrapper: entry 2·i of the cond list is part i's positive, 2·i+1 its negative."""

    def __init__(self, deltas: Sequence[Deltas | None]) -> None:
        self._deltas = deltas

    def __call__(self, executor: WrapperExecutor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        *before, transformer_options = args[:5]
        entries = transformer_options["cond_or_uncond"]
        with ExitStack() as stack:
            for rows, deltas in self._rows(entries, x.shape[0]):
                stack.enter_context(deltas.in_model_call(rows))
            return executor(x, *before, {**transformer_options, **self._told(entries)}, *args[5:], **kwargs)

    def _rows(self, entries: Sequence[int], total: int) -> Iterator[tuple[Rows, Deltas]]:
        """The rows of each part that has deltas, in a call for these entries of the cond list."""
        size = total // len(entries)
        for position, deltas in enumerate(self._deltas):
            own = [n for n, entry in enumerate(entries) if self._position(entry) == position]
            if deltas is None or not own:
                continue
            if own[-1] - own[0] != len(own) - 1:  # the host puts default conds after all others
                raise RowsNotSeparable("default conds put the rows of the branches between each other")
            yield Rows(own[0] * size, (own[-1] + 1) * size, total), deltas

    def _position(self, entry: int) -> int:
        return entry // 2

    def _told(self, entries: Sequence[int]) -> dict[str, Any]:
        """What patches of other packs read, as in a call of the host: 0 for a positive, 1 for a negative."""
        return {"cond_or_uncond": [entry % 2 for entry in entries]}


class _JoinedRows(_RowRouter):
    """APPLY_MODEL wrapper: entry i of the cond list is part i, the rows of its negative before those of its positive.

    Args:
        deltas: of each part.
        uuids: of each part's negative and positive cond.
        sigmas: noise level per row of the latents.

    Attributes:
        was_split: whether the host found too little memory for a call of all entries.
    """

    def __init__(self, deltas: Sequence[Deltas | None], uuids: Sequence[tuple[Any, Any]], sigmas: torch.Tensor) -> None:
        super().__init__(deltas)
        self._uuids, self._sigmas = uuids, sigmas
        self.was_split = False

    def _position(self, entry: int) -> int:
        return entry

    def _told(self, entries: Sequence[int]) -> dict[str, Any]:
        self.was_split |= len(entries) < len(self._uuids)
        return {
            "cond_or_uncond": [1, 0] * len(entries),
            "uuids": [uuid for entry in entries for uuid in self._uuids[entry]],
            "sigmas": self._sigmas,
        }
