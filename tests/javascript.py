"""Modules of the front end under node: those that need no page, and one with as much of a page as it asks for."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).resolve().parents[1] / "web"
_NODE = shutil.which("node")

needs_node = pytest.mark.skipif(_NODE is None, reason="needs node (nodejs.org): it runs the front end's modules")

# A line of JSON in, a line out.
_LOOP = """
import { createInterface } from "node:readline";
for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(answer(JSON.parse(line))));
}
"""


@contextmanager
def module(name: str, answer: str) -> Iterator[Callable[[Any], Any]]:
    """A file of `web/` as a function.

    Args:
        name: of the file.
        answer: source of a function `answer` of one value, which sees the module's names.
    """
    with _running(
        "--input-type=module", "--eval", f"{(WEB / name).read_text(encoding='utf-8')}\n{answer}\n{_LOOP}"
    ) as ask:
        yield ask


@contextmanager
def on_a_page(page: Path, scripts: dict[str, str], answer: str) -> Iterator[Callable[[Any], Any]]:
    """All files of `web/`, where the host has them, as a function.

    Args:
        page: a module that sets what a browser has; it is there as `page.js`.
        scripts: the host's own modules, by name.
        answer: source of a function `answer` of one value, in a module beside the files of `web/`.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, ours = Path(folder), Path(folder, "extensions", "rlg")
        shutil.copytree(WEB, ours, ignore=shutil.ignore_patterns("docs"))
        (root / "scripts").mkdir()
        for name, source in scripts.items():
            (root / "scripts" / name).write_text(source, encoding="utf-8")
        (root / "package.json").write_text('{"type": "module"}', encoding="utf-8")
        shutil.copyfile(page, ours / "page.js")
        (ours / "answer.js").write_text(f"{answer}\n{_LOOP}", encoding="utf-8")
        with _running(str(ours / "answer.js")) as ask:
            yield ask


@contextmanager
def _running(*program: str) -> Iterator[Callable[[Any], Any]]:
    process = subprocess.Popen(
        [_NODE, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )

    def ask(value: Any) -> Any:
        process.stdin.write(json.dumps(value) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "node ended"
        return json.loads(line)

    yield ask
    process.stdin.close()
    assert process.wait(timeout=60) == 0
