"""Several branches on the same weights in one call of the model, each with its own rows of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..weights.deltas import Deltas, Rows, RowsNotSeparable
from .branch_options import NotCopied, Options, with_wrapper_first
from .joined_conds import JoinedConds
from .prediction import Evaluation, Prediction

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.samplers import CFGGuider

    from .branch import Branch

_CondPair = tuple[list[dict] | None, list[dict] | None]  # positive and negative of a branch; None is not evaluated
_X0Pair = tuple[torch.Tensor, torch.Tensor]  # x0 for the positive and the negative, each shaped like the latents

# With any of these in its options a call is not a plain evaluation of the listed conds: keep the branches apart.
_OWN_EVALUATION = ("model_function_wrapper", "sampler_calc_cond_batch_function", "context_handler", "multigpu_clones")


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
    # Some patches look for the first 0 and the first 1 there (NAG, SAG): those of one model alone.
    transformer = options.get("transformer_options", {})
    patched = any(any(transformer.get(kind, {}).values()) for kind in ("patches", "patches_replace"))
    return is_plain_cfg(guider, options) and not controlled and not patched and not _is_replaced(guider)


def _is_replaced(guider: CFGGuider) -> bool:
    """Whether a node has put a forward of its own into the model, which may look for the rows of one model alone."""
    model = guider.model_patcher.model.diffusion_model
    model = getattr(model, "_orig_mod", model)  # a compiled one has a forward of its own
    own = vars(model).get("forward")  # some leave the model's own there
    others = own is not None and getattr(own, "__func__", own) is not type(model).forward
    return others or any(name.rpartition(".")[2].startswith("forward") for name in guider.model_patcher.object_patches)


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
        self, branches: Mapping[int, Branch], model: BaseModel, evaluation: Evaluation, uncond_of: int | None = None
    ) -> dict[int, Prediction]:
        """Evaluate branches in one call of the host's `calc_cond_batch`, which splits it where memory asks for that.

        Args:
            branches: those to evaluate, by the indices of their models.
            model: the loaded model whose weights they share.
            evaluation: what the sampler asks for.
            uncond_of: the model whose uncond all take; None where each has its own.

        Returns:
            index → prediction, shaped like the latents.

        Raises:
            RowsNotSeparable: the rows of a branch cannot be told apart in this model or these conds.
        """
        conds = {}
        for index, branch in branches.items():
            own = _uses_negative(branch, evaluation.options) if uncond_of is None else index == uncond_of
            conds[index] = (branch.conds.get("positive"), branch.conds.get("negative") if own else None)
        deltas = [branch.deltas for branch in branches.values()]
        if joined := self._all_joined(conds, model, evaluation.x):
            outputs = self._evaluate_joined(joined, conds, deltas, model, evaluation)
        else:
            outputs = _evaluate_apart(conds, deltas, model, evaluation)
        if uncond_of is not None:
            _, uncond = outputs[[*branches].index(uncond_of)]
            outputs = [(cond, uncond) for cond, _ in outputs]
        through_cfg = partial(_through_cfg, model, evaluation)
        return dict(zip(branches, map(through_cfg, branches.values(), outputs), strict=True))

    def _all_joined(self, conds: Mapping[int, _CondPair], model: BaseModel, x: torch.Tensor) -> list[list[dict]]:
        """For each branch a list of one cond that stands for both of its; empty where the host has to see all apart."""
        if self._apart or not all(negative for _, negative in conds.values()):
            return []
        joined = []
        for index, pair in conds.items():
            cond = self._joined.of(index, *pair, x.shape[0])
            if cond is None:
                return []
            joined.append([cond])
        if self._checked != x.shape:
            self._checked, self._apart = x.shape, not _fits(model, joined[0][0], x)
        return [] if self._apart else joined

    def _evaluate_joined(
        self,
        joined: list[list[dict]],
        conds: Mapping[int, _CondPair],
        deltas: Sequence[Deltas | None],
        model: BaseModel,
        evaluation: Evaluation,
    ) -> list[_X0Pair]:
        x, sigma = evaluation.x, evaluation.sigma
        uuids = [(negative[0]["uuid"], positive[0]["uuid"]) for positive, negative in conds.values()]
        router = _JoinedRows(deltas, uuids, sigma)
        routed = with_wrapper_first(evaluation.options, router)
        outputs = comfy.samplers.calc_cond_batch(model, joined, torch.cat([x, x]), torch.cat([sigma, sigma]), routed)
        self._apart = router.was_split
        return [(positive, negative) for negative, positive in (output.chunk(2) for output in outputs)]


def _uses_negative(branch: Branch, options: Options) -> bool:
    """As the host decides it, where it evaluates one model."""
    return abs(branch.cfg - 1.0) >= 1e-9 or branch.options(options).get("disable_cfg1_optimization", False)


def _evaluate_apart(
    conds: Mapping[int, _CondPair], deltas: Sequence[Deltas | None], model: BaseModel, evaluation: Evaluation
) -> list[_X0Pair]:
    """Evaluate every cond by itself; the host chooses which of them go into one batch."""
    routed = with_wrapper_first(evaluation.options, _RowRouter(deltas))
    flat = [cond for pair in conds.values() for cond in pair]
    outputs = comfy.samplers.calc_cond_batch(model, flat, evaluation.x, evaluation.sigma, routed)
    return [*zip(outputs[::2], outputs[1::2], strict=True)]


def _through_cfg(model: BaseModel, evaluation: Evaluation, branch: Branch, outputs: _X0Pair) -> Prediction:
    """The host's own CFG of a branch, with `outputs` in place of what it would evaluate."""
    prediction = Prediction()
    options = {**branch.options(evaluation.options), "sampler_calc_cond_batch_function": lambda _: [*outputs]}
    if evaluation.with_cfg_parts:
        options = prediction.recording(options)
    conds = branch.conds.get("negative"), branch.conds.get("positive")
    prediction.x0 = comfy.samplers.sampling_function(
        model, evaluation.x, evaluation.sigma, *conds, branch.cfg, model_options=options, seed=evaluation.seed
    )
    return prediction


def _fits(model: BaseModel, joined: dict, x: torch.Tensor) -> bool:
    """Whether the host, by its own estimate, would put the rows of a joined cond into one call."""
    shapes = {name: [part.size()] for name, part in joined["model_conds"].items()}
    needed = model.memory_required([2 * x.shape[0], *x.shape[1:]], cond_shapes=shapes)
    # Newer hosts ask the MODEL, whose weights may give way.
    free = getattr(model.current_patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return needed * 1.5 < free(x.device)


class _RowRouter(NotCopied):
    """APPLY_MODEL wrapper: entry 2·i of the cond list is the positive of branch i, 2·i+1 its negative."""

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
        """The rows of each branch that has deltas, in a call for these entries of the cond list."""
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
    """APPLY_MODEL wrapper: entry i of the cond list is branch i, the rows of its negative before those of its positive.

    Args:
        deltas: of each branch.
        uuids: of the negative and the positive cond of each branch.
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
