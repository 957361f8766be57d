"""uv, the faster of the two installers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from environment.cache import built_whole
from environment.installers import run_installer
from environment.messages import SetupError, say
from environment.packages import is_complete, python_of


def find_uv(cache: Path) -> str | None:
    """uv, which installs many times faster than pip, from the PATH or our own; None: there is none to be had."""
    uv = shutil.which("uv")
    # pyenv's shims are on the PATH also where they lead nowhere.
    if uv and subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0:
        return uv
    tools = cache / "tools"
    if not is_complete(tools):
        say("Installing uv, a fast package installer (once; 25 MB to download)")
        try:
            with built_whole(tools):
                run_installer([sys.executable, "-m", "venv", str(tools)], "creating an environment for uv", cache)
                pip = [str(python_of(tools)), "-m", "pip", "install", "--no-input", "--retries", "1"]
                run_installer([*pip, "uv"], "installing uv", cache)
        except SetupError:
            say("There is no uv to be had: going on with pip, which takes longer.")
            return None
    return str(python_of(tools).with_name("uv.exe" if os.name == "nt" else "uv"))
