"""The table of docs/compatibility.md, from files that the tests wrote with `--junitxml FILE`.

python .github/compatibility.py FILE...
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

COLUMNS = ("ComfyUI", "system", "Python", "PyTorch", "passed", "skipped", "failed", "when")


def table(files: Iterable[Path]) -> str:
    """Markdown, the oldest ComfyUI first."""
    rows = sorted(map(_row, files), key=lambda row: ([int(n) for n in re.findall(r"\d+", row[0])], row))
    return "\n".join(map(_line, [COLUMNS, ("---",) * len(COLUMNS), *rows]))


def _row(file: Path) -> tuple[str, ...]:
    suite = next(ElementTree.parse(file).iter("testsuite"))
    versions = {item.get("name"): item.get("value", "") for item in suite.iterfind("testcase/properties/property")}
    total, skipped, *failed = (int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors"))
    counts = (total - skipped - sum(failed), skipped, sum(failed))
    return (*(versions[name] for name in COLUMNS[:4]), *map(str, counts), suite.get("timestamp", "")[:10])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table(map(Path, sys.argv[1:])))
