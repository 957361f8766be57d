"""Environments with the packages of a host, of the project and of its tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from environment.cache import MARKER, built_whole
from environment.installers import run_installer
from environment.messages import SetupError, say
from environment.requirements import LOCK, PROJECT, REQUIREMENTS, constraints, project_packages, project_requirements

# On Linux the package index has PyTorch with CUDA (it runs without a GPU as well), elsewhere for the CPU.
PACKAGE_SIZES = ("2.9 GB", "5.3 GB") if sys.platform == "linux" else ("0.5 GB", "1.5 GB")


def environment_folder(cache: Path, host: Path) -> Path:
    """A folder of its own for every Python and every set of requirements, so that hosts do not disturb each other."""
    python = f"{sys.base_prefix} {sys.version} {sysconfig.get_platform()}"
    key = hashlib.sha256(python.encode())
    for requirements in (REQUIREMENTS, LOCK, host / "requirements.txt"):
        key.update(requirements.read_bytes())
    key.update(project_requirements().encode())
    return cache / "environments" / f"python{sys.version_info[0]}.{sys.version_info[1]}-{key.hexdigest()[:12]}"


def is_complete(environment: Path) -> bool:
    return (environment / MARKER).is_file() and python_of(environment).is_file()


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install_environment(environment: Path, host: Path, cache: Path, uv: str | None) -> None:
    download, disk = PACKAGE_SIZES
    free = shutil.disk_usage(cache).free / 1e9
    say(
        f"Installing PyTorch, ComfyUI's packages and the tests' in {environment}\n"
        f"  (once; about {download} to download, {disk} on disk, where {free:.0f} GB are free)"
    )
    python = str(python_of(environment))
    requirements = ["-r", str(REQUIREMENTS), "-r", str(host / "requirements.txt")]
    if uv:
        create = [uv, "venv", "--python", sys.executable, str(environment)]
        extras = ["-r", str(PROJECT), "--all-extras"]
        install = [uv, "pip", "install", "--python", python, *requirements, *extras]
    else:
        create = [sys.executable, "-m", "venv", str(environment)]
        install = [python, "-m", "pip", "install", "--no-input", *requirements, *project_packages()]
    with built_whole(environment):
        run_installer(create, "creating the environment", cache)
        locked_versions = environment / "constraints.txt"
        locked_versions.write_text(constraints(host), encoding="utf-8")
        try:
            run_installer([*install, "--constraint", str(locked_versions)], "installing the packages", cache)
        except SetupError as error:
            if host.parent == cache / "hosts":
                raise
            say(f"{error}\nTrying again without the versions of {LOCK.name}, which may not fit this ComfyUI.")
            run_installer(install, "installing the packages", cache)
