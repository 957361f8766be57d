"""The machine that the numbers belong to."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from evaluation.host import CPU_ARGUMENTS, host_version


def describe_machine() -> dict[str, str | int]:
    """Processor, threads and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "torch threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ComfyUI": host_version(),
        "ComfyUI's arguments": " ".join(CPU_ARGUMENTS),
        "dtype": "float32",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
