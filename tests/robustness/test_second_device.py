"""Where models compute on another device than they are kept on: `second_device_*.py`, each in a process of its own.

Once torch knows of a second device, it takes it for the machine's accelerator as long as the process lives, which the
tests of other things must not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = sorted(TESTS.glob("*/second_device_*.py"))


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_on_a_second_device_all_is_where_it_should_be(cases: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(cases)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
