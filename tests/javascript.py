"""Modules of the front end that need no page, under node."""

from __future__ import annotations

import json
import shutil
import subprocess
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
    source = f"{(WEB / name).read_text(encoding='utf-8')}\n{answer}\n{_LOOP}"
    process = subprocess.Popen(
        [_NODE, "--input-type=module", "--eval", source],
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
