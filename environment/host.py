"""Which ComfyUI to use, and whether it will do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from environment.messages import SetupError

OLDEST_HOST = "0.3.75"
HOST_FILES = ("main.py", "nodes.py", "comfy", "comfyui_version.py", "requirements.txt")


def choose_host(option: str | None, environ: Mapping[str, str], here: Path) -> tuple[Path | None, str]:
    """The folder of the ComfyUI to use and why that one; None is the embedded one. Nothing is checked yet."""
    if option:
        return Path(option).expanduser().resolve(), "--host"
    if variable := environ.get("COMFYUI_PATH"):
        return Path(variable).expanduser().resolve(), "COMFYUI_PATH"
    if here.parent.name == "custom_nodes" and (here.parent.parent / "main.py").is_file():
        return here.parent.parent.resolve(), "this extension is installed in it"
    return None, "embedded: no --host, no COMFYUI_PATH, not installed in a ComfyUI"


def host_version(host: Path, why: str) -> str:
    """The version of a ComfyUI that will do.

    Raises:
        SetupError: there is none at `host`, or it is too old.
    """
    if missing := [name for name in HOST_FILES if not (host / name).exists()]:
        raise SetupError(
            f"{host} ({why}) is not a ComfyUI of version {OLDEST_HOST} or newer: "
            f"it has no {missing[0]}; name the folder that holds ComfyUI's main.py."
        )
    text = (host / "comfyui_version.py").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"__version__\s*=\s*[\"'](.+?)[\"']", text)
    version = found[1] if found else "of unknown version"
    if numbers(version) < numbers(OLDEST_HOST):
        raise SetupError(
            f"ComfyUI {version} in {host} ({why}) is too old: {OLDEST_HOST} or newer is needed; "
            "update it, or name another with --host."
        )
    return version


def numbers(version: str) -> list[int]:
    """The leading numbers of a version, which compare as versions do: 'v0.3.75rc1' gives [0, 3, 75]."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return [int(number) for number in found[1].split(".")] if found else []
