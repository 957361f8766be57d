"""Which rewards there are, and how to make one by its name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import host
from .jpeg import JpegCompressibility, JpegIncompressibility
from .protocol import Reward


@dataclass(frozen=True)
class Published:
    """Weights as their authors publish them.

    Attributes:
        what: the file, or the folder with all its files.
        repository: where to get it (a Hugging Face repo id, or an address).
        pattern: of its name under `reward_models`, lower case, as fnmatch has it.
    """

    what: str
    repository: str
    pattern: str


@dataclass(frozen=True)
class Kind:
    """How to make a reward: from the path of its weights, or from None where it has none."""

    make: Callable[[Path | None], Reward]
    weights: Published | None = None


KINDS: Mapping[str, Kind] = {
    JpegCompressibility.name: Kind(lambda _: JpegCompressibility()),
    JpegIncompressibility.name: Kind(lambda _: JpegIncompressibility()),
}


def load(name: str, file: str | None) -> Reward:
    """A reward, ready to score. Nothing is downloaded.

    Args:
        name: a key of KINDS.
        file: of its weights, as `files` lists them; None takes the published one.

    Raises:
        ValueError: there is no such reward, the weights are not its, or several could be meant.
        FileNotFoundError: the weights are not there; the message says where they come from and belong.
    """
    kind = _kind(name)
    if kind.weights is None:
        return kind.make(None)
    path = host.path_of(file or _published_file(name, kind.weights))
    if path is None:
        raise FileNotFoundError(_missing(name, file or kind.weights.what, kind.weights))
    return kind.make(path)


def files(name: str) -> list[str]:
    """Weights found under the host's `reward_models` folder for this reward; those of the published name come first."""
    published = _kind(name).weights
    if published is None:
        return []
    return sorted(host.weights(), key=lambda file: not _has_name(file, published))


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"reward: there is no '{name}'; choose one of {', '.join(KINDS)}.")
    return KINDS[name]


def _published_file(name: str, published: Published) -> str:
    found = [file for file in host.weights() if _has_name(file, published)]
    if not found:
        raise FileNotFoundError(_missing(name, published.what, published))
    if len(found) > 1:
        raise ValueError(f"file: several may be meant for {name} ({', '.join(found)}); choose one of them.")
    return found[0]


def _has_name(file: str, published: Published) -> bool:
    return fnmatch.fnmatchcase(Path(file).as_posix().lower(), published.pattern)


def _missing(name: str, file: str, published: Published) -> str:
    return (
        f"file: '{file}' for {name} is not in {host.folder()}; download {published.what} from "
        f"{published.repository}, put it there, and press R."
    )
