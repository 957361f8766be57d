"""The repository's files that say which packages, and in which versions."""

from __future__ import annotations

import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPO / "requirements-dev.txt"
PROJECT = REPO / "pyproject.toml"
LOCK = REPO / "requirements-lock.txt"


def project_requirements() -> str:
    """What pyproject.toml asks for; the rest of it, such as a new version, needs no new environment."""
    found = re.search(r"^dependencies = .*?(?=^\[project\.urls\])", PROJECT.read_text(encoding="utf-8"), re.M | re.S)
    return found[0] if found else ""


def project_packages() -> list[str]:
    """Each of them, those of the extras too, for an installer that does not read them from there."""
    return re.findall(r'"([^"\n]+)"', project_requirements())


def constraints(host: Path) -> str:
    """The locked versions, without the packages of which the host itself names one version, and without their parts."""

    def name(line: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\s=<>~!;\[]", line, maxsplit=1)[0]).lower()

    of_host = (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name(line) for line in of_host if "==" in line}

    def is_the_hosts(package: str) -> bool:  # comfyui-workflow-templates-core goes with comfyui-workflow-templates
        return any(f"{package}-".startswith(f"{other}-") for other in pinned)

    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if not is_the_hosts(name(line)))
