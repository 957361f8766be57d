"""What patches of other packs remember as attributes of the model that they patch (TeaCache, MagCache)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_NOTHING = object()


class OwnState:
    """The attributes of one branch: on a model that several share, the next would go on with what the last one left."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None

    @contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        """Let the model have them, and afterwards those that it had before."""
        attributes = vars(model)
        before = _plain(attributes)
        if self._kept is None:
            self._kept = {name: _copied(value) for name, value in before.items() if type(value) in (dict, list)}
        attributes.update(self._kept)
        try:
            yield
        finally:
            after = _plain(attributes)
            self._kept = {name: value for name, value in after.items() if value is not before.get(name, _NOTHING)}
            for name in after.keys() - before.keys():
                del attributes[name]
            attributes.update(before)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Without torch's own, and without functions that stand in for methods."""
    return {name: value for name, value in attributes.items() if not name.startswith("_") and not callable(value)}


def _copied(value: Any) -> Any:
    """Containers that can be written into are the branch's own, too; what is in the end in them is not copied."""
    if type(value) is dict:
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if type(value) is list else value
