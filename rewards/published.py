"""Weights as their authors publish them: how they are called, where to get them, and what is made of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

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


class Kinds(dict[str, Kind[Made]]):
    """All rewards, or all measures, by name.

    Args:
        what: one of them is, in messages, and as the node's input is called.
        user: how a message names one that needs weights; {} stands for its name.
        kinds: by name.
    """

    def __init__(self, what: str, user: str, kinds: Mapping[str, Kind[Made]]) -> None:
        super().__init__(kinds)
        self._what, self._user = what, user

    # Weights made in inference mode, in which the host runs nodes, could pass on no gradient.
    @torch.inference_mode(False)
    def load(self, name: str, file: str | None) -> Made:
        """One of them, ready to use. Nothing is downloaded.

        Args:
            name: of what is wanted.
            file: of its weights, an entry of `host.weights()`; None takes the published one. Without meaning where
                there are none.

        Raises:
            ValueError: there is none of that name, the weights are not its, several could be meant, or a library is
                missing.
            FileNotFoundError: the weights are not there; the message says where they come from and belong.
        """
        files = self.files_of(name, file)
        return self[name].make(*files[:1])

    def files_of(self, name: str, file: str | None) -> tuple[Path, ...]:
        """Where its weights lie, then what else it takes; nothing where it has none.

        Arguments and errors are those of `load`, of what can be known before anything is read.
        """
        if name not in self:
            raise ValueError(f"{self._what}: there is no '{name}'; choose one of {', '.join(self)}.")
        kind = self[name]
        if kind.weights is None:
            return ()
        path = kind.weights.find(self._user.format(name), file)
        return (path,) if kind.beside is None else (path, kind.beside(path))


CLIP_L = Published(
    "the folder clip-vit-large-patch14", "openai/clip-vit-large-patch14 (Hugging Face)", "*clip-vit-large-patch14"
)
