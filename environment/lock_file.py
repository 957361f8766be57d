"""requirements-lock.txt, written anew."""

from __future__ import annotations

from pathlib import Path

from environment.cache import locked
from environment.embedded_host import WHEEL_VERSION, download_host, embedded_host, is_intact
from environment.installers import run_installer
from environment.messages import SetupError, say
from environment.requirements import LOCK, PROJECT, REQUIREMENTS
from environment.uv import find_uv

LOCK_HEADER = """\
# Exact versions of what the tests of ComfyUI {version} run with, on Linux, macOS and Windows; for another ComfyUI as
# far as its own requirements allow. Written by `python dev.py lock`. No hashes: PyTorch has others for each GPU.
"""


def refresh_lock(cache: Path) -> None:
    """Write the newest versions that fit together and ComfyUI as we embed it."""
    host = embedded_host(cache)
    with locked(cache / "setup.lock"):
        uv = find_uv(cache)
        if not uv:
            raise SetupError(
                "the versions are found by uv, and there is none to be had; install it and run this again."
            )
        if not is_intact(host):
            download_host(host, cache, uv)
        found = cache / "requirements-lock.txt"
        found.unlink(missing_ok=True)  # uv would keep the versions in it
        options = ["--universal", "--python-version", "3.10", "--no-annotate", "--no-header", "--no-emit-index-url"]
        sources = [str(PROJECT), "--all-extras", str(REQUIREMENTS), str(host / "requirements.txt")]
        compile_ = [uv, "pip", "compile", *options, *sources, "--output-file", str(found)]
        run_installer(compile_, "finding the newest versions", cache)
    header = LOCK_HEADER.format(version=WHEEL_VERSION)
    LOCK.write_text(header + found.read_text(encoding="utf-8"), encoding="utf-8", newline="\n")
    say(f"Written: {LOCK}. Now run the tests with it.")
