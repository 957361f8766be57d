"""A real ComfyUI in this process, with the extension loaded the way ComfyUI loads it."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

REPO = Path(__file__).resolve().parent.parent
# Without the second the host's attention on a CPU is slow, and another one than diffusers'.
CPU_ARGUMENTS = ("--cpu", "--use-pytorch-cross-attention")
_IN_OUTPUT = ("checkpoints", "clip", "vae", "diffusion_models", "loras")
"""Kinds of models that ComfyUI's own nodes save in its output folder."""
_ABOUT_A_GPU = ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram")
"""Of which ComfyUI takes one, or --cpu."""


@dataclass(frozen=True)
class HostSettings:
    """Which ComfyUI, and how.

    Attributes:
        path: the folder of its main.py.
        arguments: as its command line takes them.
        models: folders laid out like its `models` folder, which it looks into first.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    models: tuple[Path, ...] = ()


def check_host(path: Path) -> Path:
    """Raises SystemExit: there is no ComfyUI at `path`."""
    if not (path / "comfy" / "samplers.py").is_file():
        raise SystemExit(f"--host: there is no ComfyUI in {path}; give the folder that holds its main.py.")
    return path


def open_host(path: Path, arguments: Sequence[str] = CPU_ARGUMENTS) -> None:
    """Make ComfyUI at `path` importable and configured. Call it before anything of `comfy` is imported.

    The host comes first on the path and this repository last, because both have a module named `nodes`.

    Args:
        path: ComfyUI's folder.
        arguments: as its command line takes them.

    Raises:
        SystemExit: there is no ComfyUI at `path`, or it does not know an argument.
    """
    check_host(path)
    sys.path[:] = [str(path), *(p for p in sys.path if Path(p or ".").resolve() != REPO), str(REPO)]
    sys.argv[1:] = arguments
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  (reads sys.argv once, here)

    logging.getLogger().setLevel(logging.WARNING)


def start_host(settings: HostSettings) -> Extension:
    """ComfyUI in this process, on the CPU where there is no GPU; then as `open_host`."""
    import torch

    kinds = [getattr(torch, kind, None) for kind in ("cuda", "xpu", "npu", "mlu")]
    has_gpu = torch.backends.mps.is_available() or any(kind is not None and kind.is_available() for kind in kinds)
    open_host(settings.path, settings.arguments if has_gpu else _on_cpu(settings.arguments))
    import folder_paths
    from comfy.cli_args import args

    if args.output_directory:
        folder_paths.set_output_directory(os.path.abspath(args.output_directory))
    add_model_folders(settings.path, settings.models)
    return Extension()


def _on_cpu(arguments: Sequence[str]) -> Sequence[str]:
    """These arguments of ComfyUI, but for those about a GPU, and with what a machine without one needs."""
    if "--directml" in arguments:
        return arguments
    arguments = [a for a in arguments if a not in _ABOUT_A_GPU]
    missing = [a for a in CPU_ARGUMENTS if a not in arguments]
    if any(a.startswith("--use-") and a.endswith("attention") for a in arguments):  # of which ComfyUI takes one
        missing = [a for a in missing if not a.endswith("attention")]
    return (*arguments, *missing)


def add_model_folders(host: Path, folders: Sequence[Path]) -> None:
    """The folders that main.py would add (extra_model_paths.yaml, --extra-model-paths-config, and those in its output
    folder, where LoRAs that were trained here are), and then `folders`."""
    import folder_paths
    from comfy.cli_args import args
    from utils.extra_config import load_extra_path_config

    own = host / "extra_model_paths.yaml"
    for config in [*([own] if own.is_file() else []), *itertools.chain(*(args.extra_model_paths_config or []))]:
        load_extra_path_config(str(config))
    for kind in _IN_OUTPUT:
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.get_output_directory(), kind))
    for folder in folders:
        for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
            folder_paths.add_model_folder_path(kind.name, str(kind), is_default=True)


class Extension:
    """The extension's nodes and modules, as ComfyUI's custom-node loader made them.

    Raises:
        RuntimeError: ComfyUI did not take the extension.
    """

    def __init__(self) -> None:
        import nodes

        if not asyncio.run(nodes.load_custom_node(str(REPO))):
            raise RuntimeError("ComfyUI did not load the extension; its log above says why.")
        self._nodes = nodes.NODE_CLASS_MAPPINGS
        self._package = str(REPO).replace(".", "_x_")

    def node(self, node_id: str) -> type:
        """The class of a node, ours or the host's."""
        return self._nodes[node_id]

    def nodes_that_give(self, kind: str) -> list[str]:
        """Ids of the nodes whose first output is of a type."""
        return [name for name, node in self._nodes.items() if list(node.RETURN_TYPES[:1]) == [kind]]

    def run_node(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Outputs of a node, ours or the host's."""
        node = self._nodes[node_id]
        if hasattr(node, "GET_SCHEMA"):
            return node.execute(**inputs).result
        return getattr(node(), node.FUNCTION)(**inputs)

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self._package}.{name}")


def device() -> torch.device:
    """Where the host computes."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def host_arguments() -> str:
    return " ".join(sys.argv[1:])


def host_version() -> str:
    from comfyui_version import __version__

    return __version__
