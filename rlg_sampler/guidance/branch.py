"""A tuned model as one branch of a guided run: its model, conds, options and CFG."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers, merge_nested_dicts

from ..weights.deltas import ALL_ROWS, Deltas
from ..weights.kept_matrices import kept_matrices
from ..weights.missed_modules import warn_of_missed
from ..weights.pair import ModelPair
from .branch_options import KEY, Options, added_options, sampling_options, with_wrapper_first
from .settings import GuidanceSettings

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

Conds = dict[str, list[dict[str, Any]]]

# The host's key of the wrapper that swaps in a compiled model: that of the base must not be swapped into another.
_COMPILE_KEY = "torch.compile"


@dataclass(frozen=True)
class TunedModel:
    """A tuned MODEL in the mix, with its base, and how it is guided."""

    pair: ModelPair
    settings: GuidanceSettings


@dataclass(frozen=True)
class RunInputs:
    """What the host prepares conds from, as it passes them to a sampler."""

    noise: torch.Tensor
    latent_image: torch.Tensor | None
    denoise_mask: torch.Tensor | None
    seed: int | None
    latent_shapes: Any


@dataclass
class TunedBranch:
    """One tuned model during a run.

    Attributes:
        tuned: the tuned MODEL with its schedule and CFG.
        patcher: the loaded MODEL it is evaluated on (the base's, where weights are shared).
        base_options: the base MODEL's own options, to tell later additions from.
        has_own_options: whether its MODEL's options differ from those.
        conds: its conds, once `ready`.
        deltas: what turns the base's weights into its own, once `ready`; None for a checkpoint of its own.
    """

    tuned: TunedModel
    patcher: ModelPatcher
    base_options: Options
    has_own_options: bool
    conds: Conds = field(default_factory=dict)
    deltas: Deltas | None = None
    _own_options: Options | None = None

    @property
    def model(self) -> BaseModel:
        return self.patcher.model

    def make_deltas(self, device: torch.device) -> None:
        """Build the deltas, where weights are shared and the run has none yet.

        Args:
            device: where the model will compute; its weights need not be there.
        """
        pair = self.tuned.pair
        if pair.changes is None or self.deltas is not None:
            return
        dtype = _compute_dtype(self.model)
        if not comfy.model_management.is_device_cpu(device):
            comfy.model_management.free_memory(Deltas.memory_of(pair.changes, self.model, dtype), device)
        kept = kept_matrices(pair.base, pair.tuned, dtype)
        self.deltas = Deltas.from_changes(pair.changes, self.patcher, device, dtype, kept)

    @contextmanager
    def ready(self, conds: Conds, inputs: RunInputs) -> Iterator[None]:
        """Prepare for sampling; undone at the end, however that comes.

        Args:
            conds: the run's conds before the host prepared them for the base model.
            inputs: of the run.
        """
        # Ids of their own: patches that cache per cond must not take the tuned branch for the base.
        conds = {name: [{**c, "uuid": uuid.uuid4()} for c in cs] for name, cs in conds.items()}
        with ExitStack() as stack:
            if self.tuned.pair.changes is None:
                _give_own_hooks(conds)
                comfy.sampler_helpers.prepare_model_patcher(self.patcher, conds, {"transformer_options": {}})
                stack.callback(self.patcher.restore_hook_patches)
                self.patcher.pre_run()
                stack.callback(self.patcher.cleanup)
            else:
                self.make_deltas(inputs.noise.device)
                stack.enter_context(self.deltas.attached(self.model))
            if self.has_own_options:
                stack.enter_context(self._own_patches_on(inputs.noise.device))
                self._own_options = sampling_options(self.tuned.pair.tuned)
            with self.deltas.applied_to(ALL_ROWS) if self.deltas else ExitStack():
                self.conds = comfy.samplers.process_conds(
                    self.model,
                    inputs.noise,
                    conds,
                    inputs.noise.device,
                    inputs.latent_image,
                    inputs.denoise_mask,
                    inputs.seed,
                    latent_shapes=inputs.latent_shapes,
                )
            yield
            if self.deltas is not None:
                warn_of_missed(self.deltas.missed, len(self.deltas.modules), self.tuned.pair.tuned)

    def options(self, current: Options) -> Options:
        """Model options for this branch, given those the sampler passes for the base."""
        added = current if self._own_options is None else added_options(current, self.base_options)
        # Split over several GPUs the host would evaluate copies of the base model, without deltas: use one GPU.
        added = {k: v for k, v in added.items() if k != "multigpu_clones"}
        if self.deltas is None:
            added = _without_compile(added)
        options = added if self._own_options is None else merge_nested_dicts(self._own_options, added)
        if self.deltas is None:
            return options
        return with_wrapper_first(options, WrappersMP.APPLY_MODEL, KEY, self._on_all_rows)

    @property
    def predict_wrappers(self) -> list[Any]:
        """PREDICT_NOISE wrappers of its MODEL, the outermost first."""
        own = self.base_options if self._own_options is None else self._own_options
        return get_all_wrappers(WrappersMP.PREDICT_NOISE, own, is_model_options=True)

    def _on_all_rows(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.deltas.in_model_call(ALL_ROWS):
            return executor(*args, **kwargs)

    @contextmanager
    def _own_patches_on(self, device: torch.device) -> Iterator[None]:
        # The host moves the patches of a MODEL as it loads it; one that shares the base's weights is never loaded.
        tuned = self.tuned.pair.tuned
        try:
            tuned.model_patches_to(device)
            tuned.model_patches_to(tuned.model_dtype())
            yield
        finally:
            tuned.model_patches_to(tuned.offload_device)


def _give_own_hooks(conds: Conds) -> None:
    """Copies of cond hooks for another model: a keyframe that one model has passed would be lost to the other."""
    groups: dict[int, Any] = {}
    keyframes: dict[int, Any] = {}
    for cond in (c for cs in conds.values() for c in cs if c.get("hooks") is not None):
        group = cond["hooks"]
        if id(group) not in groups:
            groups[id(group)] = group.clone()
            for hook in groups[id(group)].hooks:
                shared = hook.hook_keyframe
                hook.hook_keyframe = keyframes.setdefault(id(shared), shared.clone())
        cond["hooks"] = groups[id(group)]


def _without_compile(options: Options) -> Options:
    options = create_model_options_clone(options)
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(_COMPILE_KEY, None)
    return options


def _compute_dtype(model: BaseModel) -> torch.dtype:
    dtype = model.manual_cast_dtype or model.get_dtype()
    # Weights may be stored in 8 bits or fewer; deltas are not.
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
