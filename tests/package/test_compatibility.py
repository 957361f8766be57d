"""The table of docs/compatibility.md counts what pytest counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
VERSIONS = """
import pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items[0].user_properties += [(name, f"a {name}") for name in ("system", "Python", "PyTorch")]
    items[0].user_properties.append(("ComfyUI", "VERSION"))
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(7))
def test_some(number):
    if number < 2:
        pytest.skip()
    assert number != 3

def test_without_its_fixture(gone):
    pass
"""


def test_the_table_is_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{version}.xml" for version in ("0.14.0", "0.8.0")]
    tests = tmp_path / "test_it.py"
    tests.write_text(TESTS)
    for file in files:
        (tmp_path / "conftest.py").write_text(VERSIONS.replace("VERSION", file.stem))
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tests)]
        command += ["-n", "2"]  # as the tests run
        run = subprocess.run([*command, f"--junitxml={file}"], capture_output=True, cwd=tmp_path, check=False)
        assert run.returncode == 1, run.stdout
    command = [sys.executable, str(REPO / ".github" / "compatibility.py"), *map(str, files)]
    header, _, *rows = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    assert header == "| ComfyUI | system | Python | PyTorch | passed | skipped | failed | when |"
    assert [row[: row.index(" 20")] for row in rows] == [
        f"| {version} | a system | a Python | a PyTorch | 4 | 2 | 2 |" for version in ("0.8.0", "0.14.0")
    ]
