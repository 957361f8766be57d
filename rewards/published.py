"""Weights as their authors publish them: how they are called, where to get them, and what is made of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from . import host

Made = TypeVar("Made")


@dataclass(frozen=True)
class Published:
    """Weights that a reward needs.

    Attributes:
        what: the file, or the folder with all its files.
        repository: where to get it: a Hugging Face repo id, or an address.
        pattern: of its name under `reward_models`, lower case, as fnmatch has it.
    """

    what: str
    repository: str
    pattern: str

    def is_called(self, file: str) -> bool:
        """Whether an entry of `host.weights()`, or a folder that it lies in, has the published name."""
        names = (Path(file), *Path(file).parents)
        return any(fnmatch.fnmatchcase(name.as_posix().lower(), self.pattern) for name in names)

    def find(self, user: str, file: str | None = None) -> Path:
        """Where the weights lie.

        Args:
            user: what needs them, for messages.
            file: an entry of `host.weights()`; None takes the one of the published name.

        Raises:
            FileNotFoundError: they are not there; the message says where they come from and belong.
            ValueError: several have the published name.
        """
        if file is None:
            found = [entry for entry in host.weights() if self.is_called(entry)]
            if len(found) > 1:
                raise ValueError(f"file: several may be meant for {user} ({', '.join(found)}); choose one of them.")
            file = found[0] if found else None
        path = None if file is None else host.path_of(file)
        if path is None:
            raise FileNotFoundError(
                f"file: '{file or self.what}' for {user} is not in {host.folder()}; download {self.what} from "
                f"{self.repository}, put it there, press R, and run again."
            )
        return path


@dataclass(frozen=True)
class Kind(Generic[Made]):
    """How to make a reward or a measure.

    Attributes:
        make: called with the path of its weights, or with nothing where it has none.
        weights: how they are published.
        beside: finds what else it takes, by the path of its weights; raises FileNotFoundError where that is not.
    """

    make: Callable[..., Made]
    weights: Published | None = None
    beside: Callable[[Path], Path] | None = None

    def path(self, user: str, file: str | None) -> Path | None:
        """Where the weights lie, with all that belongs to them; None where it has none. See `Published.find`."""
        if self.weights is None:
            return None
        path = self.weights.find(user, file)
        if self.beside is not None:
            self.beside(path)
        return path

    def made(self, path: Path | None) -> Made:
        """One of it, from weights at `path`, which is None where there are none."""
        return self.make() if path is None else self.make(path)


CLIP_L = Published(
    "the folder clip-vit-large-patch14", "openai/clip-vit-large-patch14 (Hugging Face)", "*clip-vit-large-patch14"
)
