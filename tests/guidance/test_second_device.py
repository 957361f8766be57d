"""Where the model computes on another device than it is kept on: `second_device_cases.py`, in a process of its own.

Once torch knows of a second device, it takes it for the machine's accelerator as long as the process lives, which the
tests of other things must not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("second_device_cases.py")


def test_on_a_second_device_all_is_where_it_should_be() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(CASES)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
