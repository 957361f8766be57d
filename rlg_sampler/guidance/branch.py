"""The models of a mix as branches of a guided run: each with its weights, conds, options and CFG."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sampler_helpers
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, get_all_wrappers, merge_nested_dicts

from ..weights.deltas import ALL_ROWS, Deltas, kept_matrices
from ..weights.missed_modules import warn_of_missed
from ..weights.pair import ModelPair
from .branch_options import NotCopied, Options, added_options, sampling_options, with_wrapper_first
from .cond_hooks import Conds, give_own_hooks
from .settings import GuidanceSettings

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider

# The host's key of the wrapper that swaps in a compiled model: that of the base must not be swapped into another.
_COMPILE_KEY = "torch.compile"


@dataclass(frozen=True)
class TunedModel:
    """A tuned MODEL in the mix, with its base, and how it is guided."""

    pair: ModelPair
    settings: GuidanceSettings


@dataclass(frozen=True)
class BaseBranch(NotCopied):
    """The base model during a run: the guider as it stands.

    Attributes:
        guider: the guider that samples.
        predict_wrappers: PREDICT_NOISE wrappers of the base MODEL, the outermost first.
    """

    guider: CFGGuider
    predict_wrappers: list[Any]
    deltas = None

    @property
    def model(self) -> BaseModel:
        return self.guider.inner_model

    @property
    def conds(self) -> Conds:
        return self.guider.conds

    @property
    def cfg(self) -> float:
        return self.guider.cfg

    @property
    def may_share_a_call(self) -> bool:
        return not self.predict_wrappers

    def options(self, current: Options) -> Options:
        return current

    def in_guider(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class TunedBranch(NotCopied):
    """One tuned model during a run.

    Attributes:
        guider: the guider that samples.
        tuned: the tuned MODEL, and how it is guided.
        patcher: the loaded MODEL it is evaluated on (the base's, where weights are shared).
        base_options: the base MODEL's own options, to tell later additions from.
        own_options: those of its MODEL; None where they are the same.
        conds: its conds, once `ready`.
        deltas: what turns the base's weights into its own, once `ready`; None for a checkpoint of its own.
    """

    guider: CFGGuider
    tuned: TunedModel
    patcher: ModelPatcher
    base_options: Options
    own_options: Options | None
    conds: Conds = field(default_factory=dict)
    deltas: Deltas | None = None

    @property
    def model(self) -> BaseModel:
        return self.patcher.model

    @property
    def cfg(self) -> float:
        own = self.tuned.settings.tuned_cfg
        return self.guider.cfg if own is None else own

    @property
    def predict_wrappers(self) -> list[Any]:
        """PREDICT_NOISE wrappers of its MODEL, the outermost first."""
        own = self.base_options if self.own_options is None else self.own_options
        return get_all_wrappers(WrappersMP.PREDICT_NOISE, own, is_model_options=True)

    @property
    def may_share_a_call(self) -> bool:
        """Whether a call of the base model may compute it too: the same weights but for deltas, the same patches."""
        return self.deltas is not None and self.own_options is None and not self.predict_wrappers

    def make_deltas(self, device: torch.device) -> None:
        """Build the deltas, where weights are shared and the run has none yet.

        Args:
            device: where the model will compute; its weights need not be there.
        """
        pair = self.tuned.pair
        if pair.changes is None or self.deltas is not None:
            return
        dtype = _compute_dtype(self.patcher)
        if not comfy.model_management.is_device_cpu(device):
            comfy.model_management.free_memory(Deltas.memory_of(pair.changes, self.model, dtype), device)
        kept = kept_matrices(pair.base, pair.tuned, dtype)
        self.deltas = Deltas.from_changes(pair.changes, self.patcher, device, dtype, kept)

    @contextmanager
    def ready(self, conds: Conds, prepare: Callable[[BaseModel, Conds], Conds], device: torch.device) -> Iterator[None]:
        """Prepare for sampling; undone at the end, however that comes.

        Args:
            conds: the run's conds before the host prepared them for the base model.
            prepare: (model, conds) → the conds as the host prepares them for that model.
            device: where the model computes.
        """
        # Ids of their own: patches that cache per cond must not take the tuned branch for the base.
        conds = {name: [{**c, "uuid": uuid.uuid4()} for c in cs] for name, cs in conds.items()}
        with ExitStack() as stack:
            weights = self._own_weights(conds) if self.tuned.pair.changes is None else self._deltas_on(device)
            stack.enter_context(weights)
            if self.own_options is not None:
                stack.enter_context(self._own_patches_on(device))
            # Some models compute parts of their conds, which takes the tuned weights.
            with self.deltas.applied_to(ALL_ROWS) if self.deltas else nullcontext():
                self.conds = prepare(self.model, conds)
            yield

    def options(self, current: Options) -> Options:
        """Model options for this branch, given those the sampler passes for the base."""
        added = current if self.own_options is None else added_options(current, self.base_options)
        # Split over several GPUs the host would evaluate copies of the base model, without deltas: use one GPU.
        added = {k: v for k, v in added.items() if k != "multigpu_clones"}
        if self.deltas is None:
            added = _without_compile(added)
        options = added if self.own_options is None else merge_nested_dicts(self.own_options, added)
        if self.deltas is None:
            return options
        return with_wrapper_first(options, self._on_all_rows)

    @contextmanager
    def in_guider(self) -> Iterator[None]:
        """Let the guider stand for this branch: with its model, conds and CFG."""
        own = {"inner_model": self.model, "conds": self.conds}
        if self.tuned.settings.tuned_cfg is not None:
            own["cfg"] = self.tuned.settings.tuned_cfg
        saved = {name: getattr(self.guider, name) for name in own}
        try:
            for name, value in own.items():
                setattr(self.guider, name, value)
            yield
        finally:
            for name, value in saved.items():
                setattr(self.guider, name, value)

    def _on_all_rows(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.deltas.in_model_call(ALL_ROWS):
            return executor(*args, **kwargs)

    @contextmanager
    def _own_weights(self, conds: Conds) -> Iterator[None]:
        """As a run of the host treats the MODEL it samples with."""
        give_own_hooks(conds)
        if hasattr(self.guider.inner_model, "latent_shapes"):  # by which newer hosts tell sound from pictures
            self.model.latent_shapes = self.guider.inner_model.latent_shapes
        with ExitStack() as undone:
            comfy.sampler_helpers.prepare_model_patcher(self.patcher, conds, {"transformer_options": {}})
            undone.callback(self.patcher.restore_hook_patches)
            self.patcher.pre_run()
            undone.push(self._clean_up_after)
            yield

    def _clean_up_after(self, error: type[BaseException] | None, *_: object) -> None:
        """The host does so after whole runs alone."""
        if error is not None:
            self.patcher.cleanup()

    @contextmanager
    def _deltas_on(self, device: torch.device) -> Iterator[None]:
        self.make_deltas(device)
        try:
            with self.deltas.attached(self.model):
                yield
            warn_of_missed(self.deltas.missed, len(self.deltas.modules), self.tuned.pair.tuned)
        finally:
            self.deltas = None  # some samplers (dpm_fast) leave a cycle that holds the run until garbage is collected

    @contextmanager
    def _own_patches_on(self, device: torch.device) -> Iterator[None]:
        # The host moves and empties the patches of a MODEL that it loads; one that shares the base's weights is not.
        tuned = self.tuned.pair.tuned
        try:
            tuned.model_patches_to(device)
            tuned.model_patches_to(tuned.model_dtype())
            self.own_options = sampling_options(tuned)
            self._call_back(CallbacksMP.ON_PRE_RUN)
            yield
        finally:
            tuned.model_patches_to(tuned.offload_device)
            if hasattr(tuned, "model_patches_call_function"):  # newer hosts have patches that keep something
                tuned.model_patches_call_function("cleanup")
            self._call_back(CallbacksMP.ON_CLEANUP)

    def _call_back(self, kind: str) -> None:
        """Call the callbacks of its MODEL alone; the base's are the host's affair, and `_own_weights` calls its own."""
        if not self.tuned.pair.shares_weights:
            return
        of_base = self.guider.model_patcher.get_all_callbacks(kind)
        for callback in self.tuned.pair.tuned.get_all_callbacks(kind):
            if not any(callback is other for other in of_base):
                callback(self.tuned.pair.tuned)


Branch = BaseBranch | TunedBranch


def _without_compile(options: Options) -> Options:
    options = create_model_options_clone(options)
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(_COMPILE_KEY, None)
    return options


def _compute_dtype(patcher: ModelPatcher) -> torch.dtype:
    # Of the MODEL, not of what is loaded: ModelComputeDtype is a patch, and may not be in place yet.
    dtype = patcher.get_model_object("manual_cast_dtype") or patcher.model_dtype()
    # Weights may be stored in 8 bits or fewer; deltas are not.
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
