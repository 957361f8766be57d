"""The state of a run on disk, as a whole or not at all, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..files.replacing import advice, replacing

_KEY = "rlg_training"
_HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
_EARLIER = "earlier"
"""Folder, beside the states, for those of runs that had other settings under the same name."""


@dataclass(frozen=True)
class State:
    """Everything that the rest of a run depends on.

    Attributes:
        settings: name → value as text, of all that would make another run.
        iteration: so many are done.
        tensors: parameters, their average, the optimiser's.
        history: one entry per iteration.
    """

    settings: Mapping[str, str]
    iteration: int
    tensors: Mapping[str, torch.Tensor]
    history: list[dict[str, float]]

    def write(self, path: Path) -> None:
        """Write to a file, which is never seen half-written.

        Raises:
            OSError: the disk is full or cannot be written; what was there before stays.
        """
        about = {"settings": dict(self.settings), "iteration": self.iteration, "history": self.history}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary, metadata={_KEY: json.dumps(about)})
        except (OSError, SafetensorError) as error:
            raise _not_written(path, error) from error

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The state in a file; None where there is none.

        Raises:
            ValueError: the file holds something else.
        """
        if not path.exists():
            return None
        with _reading(path):
            about = _about(path)
            return cls(about["settings"], about["iteration"], load_file(path), about["history"])


def take_up(path: Path, settings: Mapping[str, str]) -> tuple[State | None, str]:
    """The state that a run of these settings goes on from, if there is one, and else why not, as a sentence.

    Raises:
        ValueError: a file holds something else.
    """
    there = State.read(path)
    if there is None or not (different := changes(there.settings, settings)):
        return there, ""
    if earlier := State.read(_place_of_earlier(path, settings)):
        return earlier, ""
    kept = f" Its {there.iteration} iterations are kept: with the old settings it goes on." if there.iteration else ""
    return None, f"the run of this name starts anew, since settings changed: {'; '.join(different)}.{kept}"


def keep_other(path: Path, settings: Mapping[str, str]) -> None:
    """Put a copy of the state in a file aside where it is that of a run with other settings, to be taken up again.

    Raises:
        OSError: the disk is full or cannot be written; the state stays where it is.
    """
    if not path.exists():
        return
    with _reading(path):
        about = _about(path)
        own, iteration = about["settings"], about["iteration"]
    if not iteration or not changes(own, settings):
        return
    kept = _place_of_earlier(path, own)
    try:
        with replacing(kept) as temporary:
            try:
                os.link(path, temporary)  # takes no room; the next state is another file
            except OSError:
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise _not_written(kept, error) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"name: {path} is no checkpoint that can be read ({error}); choose another name, or delete it and the "
            "LoRA of that name."
        ) from error


def _about(path: Path) -> dict[str, Any]:
    """All of a state but its tensors."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {})[_KEY])


def _not_written(path: Path, error: Exception) -> OSError:
    return OSError(f"name: the checkpoint {path} cannot be written ({error}); {advice(error)}.")


def _place_of_earlier(path: Path, settings: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()
    return path.parent / _EARLIER / f"{path.stem} {digest[:12]}{path.suffix}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, to be read: `rank 32 → 16`; of a hash, its beginning."""
    names = [*now, *(name for name in before if name not in now)]
    told = (f"{n} {before.get(n)} → {now.get(n)}" for n in names if before.get(n) != now.get(n))
    return [_HASH.sub(r"\1", change) for change in told]
