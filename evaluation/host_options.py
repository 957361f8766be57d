"""Options of the programs that carry a plan out in a ComfyUI, on this machine or on a Ray cluster."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_line import at_least
from evaluation.errors import EvaluationError
from evaluation.host import REPO, HostSettings, check_host

# Its main.py makes it so before torch is there; nothing else looks at them.
_OF_MAIN_ALONE = ("--cuda-device", "--default-device")
STOPPED = "Stopped; the same command goes on from here."


def add_host_options(parser: argparse.ArgumentParser, workers: str) -> None:
    """Add --host, --models, --ray and --workers.

    Args:
        parser: of the program.
        workers: what those on a cluster are, for its help.
    """
    host = _default_host()
    parser.add_argument(
        "--host", type=Path, default=host, required=host is None, metavar="PATH",
        help="folder of a ComfyUI (default: COMFYUI_PATH, or the one that this is installed in)",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="DIR",
        help="another folder laid out like ComfyUI's models folder; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="work on a Ray cluster: its address, auto for the one that this machine belongs to, or local",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=at_least(1), metavar="N",
        help=f"{workers} (default: one for each GPU, or else as many as the plan's threads allow)",
    )  # fmt: skip


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows `--` is ComfyUI's, and in `comfyui`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.comfyui = tuple(arguments[end + 1 :])
    return options


def host_settings(options: argparse.Namespace) -> HostSettings:
    """The ComfyUI that the options name.

    Raises:
        EvaluationError: it or one of the folders of models is not there, or an option or an argument would be lost.
    """
    if options.workers is not None and options.ray is None:
        raise EvaluationError("--workers: they are counted on Ray alone; add --ray local, or leave it out.")
    models = tuple(Path(folder).resolve() for folder in options.models)
    if absent := [folder for folder in models if not folder.is_dir()]:
        raise EvaluationError(
            f"--models: there is no folder {absent[0]}; name one laid out like ComfyUI's models folder."
        )
    for argument in options.comfyui:
        name = argument.partition("=")[0]
        if len(name) > 2 and any(option.startswith(name) for option in _OF_MAIN_ALONE):  # also abbreviated
            raise EvaluationError(f"{name}: only ComfyUI's main.py chooses a GPU by it; set CUDA_VISIBLE_DEVICES.")
    return HostSettings(check_host(options.host.resolve()), options.comfyui, models)


def _default_host() -> Path | None:
    """The ComfyUI that the environment names, or the one that this extension is installed in."""
    if path := os.environ.get("COMFYUI_PATH"):
        return Path(path)
    return REPO.parent.parent if REPO.parent.name == "custom_nodes" else None
