"""What a user gets: the files of the registry's archive, as `comfy node pack` chooses them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def packed_files() -> list[Path]:
    """The files that `.comfyignore` leaves, relative to the repository; new ones that git would add are among them."""
    left_out = _listed("--ignored", f"--exclude-from={REPO / '.comfyignore'}")
    return [path for path in repository_files() if path not in left_out]


def repository_files() -> list[Path]:
    """The repository's files as they would be after a commit, relative to it."""
    return sorted(path for path in _listed("--exclude-standard") if (REPO / path).is_file())


def install_packed(folder: Path) -> None:
    """Unpack the archive, so to speak, into a folder that does not exist yet."""
    copy_files(packed_files(), folder)


def copy_files(paths: Iterable[Path], folder: Path) -> None:
    """Copy files of the repository, each to its place in `folder`."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / path, folder / path)


def _listed(*options: str) -> set[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", *options]
    output = subprocess.run(command, cwd=REPO, capture_output=True, check=True).stdout
    return {Path(name) for name in output.decode().split("\0") if name}
