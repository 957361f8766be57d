"""Weights from disk into a module: by safe loaders, and never in part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

StateDict = dict[str, torch.Tensor]
_SAFETENSORS = (".safetensors", ".sft")
_SHOWN_KEYS = 4


def read(path: Path) -> StateDict:
    """The tensors of a file: safetensors, or a torch file that holds nothing that runs.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix.lower() in _SAFETENSORS:
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file leads to has no common class
        raise _unreadable(path, error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"file: '{path.name}' holds something else than the weights of a model.")
    return dict(content)


def read_module(path: Path) -> StateDict:
    """As `read`, also of a file in which a module was saved as a whole, with its classes.

    No class of the file is used, whatever it is: something that only holds attributes stands in for each of them.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    if path.suffix.lower() in _SAFETENSORS:
        return read(path)
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in named]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(_tensors(content)) if isinstance(content, _Inert) else None
    except Exception as error:  # what a damaged file leads to has no common class
        raise _unreadable(path, error) from error
    return read(path) if state is None else state


class _Inert:
    """Stands in for any class of a file: it can be made, keeps what it is given, and does nothing."""

    def __init__(self, *_: object) -> None: ...


def _tensors(module: _Inert, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """What `state_dict` of the module would have given."""
    parts = vars(module)
    lasting = {k: v for k, v in parts["_buffers"].items() if k not in parts.get("_non_persistent_buffers_set", ())}
    for name, tensor in (parts["_parameters"] | lasting).items():
        if tensor is not None:
            yield f"{prefix}{name}", tensor.detach()
    for name, child in parts["_modules"].items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def fill(module: nn.Module, state: StateDict, path: Path) -> None:
    """Give a module its weights, all of them and no others.

    Raises:
        ValueError: keys or shapes are not those of the module.
    """
    own = module.state_dict()
    check(
        path,
        missing=own.keys() - state.keys(),
        unexpected=state.keys() - own.keys(),
        misshapen=(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape),
    )
    module.load_state_dict(state)


def split(state: StateDict, prefixes: tuple[str, ...], path: Path) -> list[StateDict]:
    """What a file has of each part of a model, whose keys begin with its prefix there.

    Raises:
        ValueError: there is nothing of a part, or something besides.
    """
    parts = [{k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} for prefix in prefixes]
    missing = [f"{prefix}*" for prefix, part in zip(prefixes, parts, strict=True) if not part]
    check(path, missing, unexpected=[key for key in state if not key.startswith(prefixes)], misshapen=[])
    return parts


def from_transformers(
    model: type,
    path: Path,
    config: Any = None,
    state: StateDict | None = None,
    unused: tuple[str, ...] = (),
    **options: Any,
) -> nn.Module:
    """A model of transformers with all its weights. Nothing is downloaded.

    transformers reads them, so that names of earlier versions keep their meaning.

    Args:
        model: its class.
        path: a Hugging Face folder; where there is a state, what it was read from.
        config, state: what to build in place of the folder's own.
        unused: parts of keys that do not matter, in the file or in the model.
        options: of the model's class.

    Raises:
        ValueError: it cannot be read, or keys or shapes are not those of the model.
    """
    folder = None if state is not None else path
    try:
        loaded, info = model.from_pretrained(
            folder,
            config=config,
            state_dict=state,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # neither has what a config of another model leads to
        raise _unreadable(path, error) from error
    # transformers fills what is missing with random numbers and only logs it.
    missing, unexpected = (
        [key for key in info[f"{kind}_keys"] if not any(part in key for part in unused)]
        for kind in ("missing", "unexpected")
    )
    check(path, missing, unexpected, (found[0] for found in info["mismatched_keys"]))
    return loaded


def check(path: Path, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raises ValueError where the keys of a file are not those of the model."""
    found = {"it lacks": missing, "it has besides": unexpected, "these have another shape": misshapen}
    problems = [f"{what} {_some(keys)}" for what, keys in ((w, sorted(k)) for w, k in found.items()) if keys]
    if problems:
        raise ValueError(f"file: '{path.name}' holds another model's weights: {'; '.join(problems)}.")


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"file: '{path.name}' cannot be read; download it again, as safetensors where there is a choice "
        f"({_first_line(error)})."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
