"""The project's version and the released ones, as the script of the publish workflow reads them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

_spec = importlib.util.spec_from_file_location("release_notes", REPO / ".github" / "release_notes.py")
release_notes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(release_notes)

CHANGELOG = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
VERSION: str = release_notes.project_version((REPO / "pyproject.toml").read_text(encoding="utf-8"))
RELEASED: list[str] = re.findall(r"^## \[(.+?)\] - \d", CHANGELOG, re.MULTILINE)
