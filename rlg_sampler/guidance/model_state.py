"""What patches of other packs remember as attributes of the model that they patch (TeaCache, MagCache)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

State = dict[str, Any]
_NOTHING = object()


class BranchStates:
    """The attributes of each branch of a run on a model that they share.

    Without them the next branch would go on with what the last one left. Between calls the model keeps those of the
    branch that was called last, where samplers of these packs look for them; what they write there is for all.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._attributes = vars(getattr(model, "_orig_mod", model))  # of a compiled one
        self._first: int | None = None
        self._present: int | None = None
        self._start: State = {}
        self._own: dict[int, State] = {}
        """Of the branches that are not present."""
        self._left: State = {}
        """After the last call."""

    @contextmanager
    def of(self, branch: int) -> Iterator[None]:
        """For a call of the model in this branch."""
        self._turn_to(branch)
        try:
            yield
        finally:
            self._left = _plain(self._attributes)

    def leave(self) -> None:
        """Leave in the model what a run of the first branch alone would have left."""
        if self._first is not None:
            self._turn_to(self._first)

    def _turn_to(self, branch: int) -> None:
        now = _plain(self._attributes)
        if self._first is None:
            self._first = self._present = branch
            self._start = _copied(now)
            return
        self._tell_all(now)
        if branch == self._present:
            return
        self._own[self._present] = now
        own = self._own.pop(branch) if branch in self._own else _copied(self._start)
        for name in now.keys() - own.keys():
            del self._attributes[name]
        self._attributes.update(own)
        self._present = branch

    def _tell_all(self, now: State) -> None:
        """What was written or taken away since the last call, by somebody who knows of one model alone."""
        written = {name: value for name, value in now.items() if value is not self._left.get(name, _NOTHING)}
        for state in (self._start, *self._own.values()):
            state.update(written)
            for name in self._left.keys() - now.keys():
                state.pop(name, None)


def _plain(attributes: Mapping[str, Any]) -> State:
    """Without torch's own, and without functions that stand in for methods."""
    return {name: value for name, value in attributes.items() if not name.startswith("_") and not callable(value)}


def _copied(value: Any) -> Any:
    """Containers that can be written into are each branch's own, too; what is in the end in them is not copied."""
    if type(value) is dict:
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if type(value) is list else value
