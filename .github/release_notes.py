"""What the changelog says about the version of a tag; for the publish workflow.

    python .github/release_notes.py v1.2.3

Ends with one sentence and exit code 1 when the tag must not be published.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def notes(tag: str, version: str, changelog: str) -> str:
    """The section of `version`, without its heading.

    Raises:
        SystemExit: the tag is not that of this version, or the changelog has no dated section for it.
    """
    if not is_semantic(version):
        raise SystemExit(f"pyproject.toml: the version {version} is not three numbers, as in 1.2.3.")
    if tag != f"v{version}":
        raise SystemExit(f"The tag is {tag} and the version in pyproject.toml {version}; the tag should be v{version}.")
    section = re.search(rf"^## \[{re.escape(version)}\](.*)\n((?:(?!## |\[).*\n?)*)", changelog, re.MULTILINE)
    if not section:
        raise SystemExit(f"CHANGELOG.md has no section [{version}]; write one.")
    if not re.fullmatch(r" - \d{4}-\d{2}-\d{2}\s*", section[1]):
        raise SystemExit(f"CHANGELOG.md: the section [{version}] is '{section[1].strip(' -')}'; give it the date.")
    return section[2].strip()


def is_semantic(version: str) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", version) is not None


def project_version(pyproject: str) -> str:
    """The version that a pyproject.toml gives (its text, since Python 3.10 has no parser for it)."""
    return re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)[1]


if __name__ == "__main__":
    version = project_version((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    print(notes(sys.argv[1], version, (REPO / "CHANGELOG.md").read_text(encoding="utf-8")))
