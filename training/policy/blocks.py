"""The blocks that a model is a repetition of, in a backward pass: undisturbed, and computed twice to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

from ...rlg_sampler.weights.deltas import ReplacedForward

_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


@contextmanager
def differentiable_blocks(model: torch.nn.Module, checkpointing: bool) -> Iterator[None]:
    """Let gradients pass through the blocks that a model is a repetition of.

    Some blocks of the host write into their input (Flux adds to its residual stream in place, after a norm has saved it
    for the backward pass), so here they and their norms get copies. A checkpointed block would not even notice: its
    second pass would begin with what the first one left.

    Args:
        checkpointing: keep the inputs of each block alone for the backward pass, which then computes it once more.
    """
    with ExitStack() as stack:
        for block in blocks_of(model):
            for norm in (child for child in block.children() if "Norm" in type(child).__name__):
                stack.enter_context(_OnCopies(norm))
            stack.enter_context(_OnCopies(block))
            if checkpointing:
                stack.enter_context(_Checkpointed(block))
        yield


@contextmanager
def checkpointed_decoder(vae: torch.nn.Module) -> Iterator[None]:
    """Have a VAE's blocks keep their inputs alone for a backward pass: at 1024² all they compute are 12 GB."""
    with ExitStack() as stack:
        for block in _innermost_blocks(vae):
            stack.enter_context(_CheckpointedInVae(block))
        yield


class _OnCopies(ReplacedForward):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        return self.original(*(_copied(a) for a in args), **{name: _copied(a) for name, a in kwargs.items()})


class _Checkpointed(ReplacedForward):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        # The host writes into one dictionary which block it is at: the second time that has to be this one.
        args, kwargs = tuple(map(_as_it_stands, args)), {name: _as_it_stands(a) for name, a in kwargs.items()}
        return torch.utils.checkpoint.checkpoint(
            self.original, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )


class _CheckpointedInVae(_Checkpointed):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Lists are what VAEs of videos keep from frame to frame: the second time they would not be as they were.
        if any(isinstance(argument, list) for argument in (*args, *kwargs.values())):
            return self.original(*args, **kwargs)
        return super().forward(*args, **kwargs)


def _as_it_stands(argument: Any) -> Any:
    return dict(argument) if isinstance(argument, dict) else argument


def _copied(argument: Any) -> Any:
    is_tensor = isinstance(argument, torch.Tensor)
    return argument.clone() if is_tensor and argument.is_floating_point() else argument


def blocks_of(model: torch.nn.Module, inside: bool = False) -> Iterator[torch.nn.Module]:
    """The outermost modules in lists of modules: what models are a repetition of."""
    for child in model.children():
        container = isinstance(child, _CONTAINERS)
        if inside and not container and next(child.children(), None) is not None:
            yield child
        else:
            yield from blocks_of(child, inside or container)


def _innermost_blocks(model: torch.nn.Module, inside: bool = False) -> Iterator[torch.nn.Module]:
    """The modules in lists of modules that have no such list below them."""
    for child in model.children():
        container = isinstance(child, _CONTAINERS)
        below = list(_innermost_blocks(child, inside=container))
        yield from below
        if inside and not below and not container and next(child.children(), None) is not None:
            yield child
