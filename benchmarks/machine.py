"""The machine that the numbers belong to, processes of their own on it, and the files that keep them."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from evaluation.host import CPU_ARGUMENTS, device, host_arguments, host_version, open_host
from files.pictures import write_bytes

RESULTS = Path(__file__).resolve().parent / "results"


def host_options(on_cpu: bool) -> tuple[str, ...]:
    """For the host: the same attention on every machine, or a comparison with diffusers would say nothing."""
    return CPU_ARGUMENTS if on_cpu or not torch.cuda.is_available() else CPU_ARGUMENTS[1:]


def in_own_process(host: Path, on_cpu: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a fresh process, in which the host is open."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=open_host, initargs=(host, host_options(on_cpu))) as pool:
        return pool.submit(work, *arguments).result()


def describe_machine() -> dict[str, str | int]:
    """Processor, threads and versions."""
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device()) if device().type == "cuda" else device().type,
        "cores": os.cpu_count() or 0,
        "torch threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ComfyUI": host_version(),
        "ComfyUI's arguments": host_arguments(),
        "computes in": "float32",
    }


def as_list(machine: Mapping[str, str | int]) -> str:
    """What `describe_machine` says, in Markdown."""
    return "\n".join(f"- {key}: {value}" for key, value in machine.items())


def record(name: str, text: str, values: Any) -> None:
    """Write a benchmark's text and values to the results, in the place of those of an earlier run."""
    write_bytes(RESULTS / f"{name}.md", f"{text}\n".encode())
    write_bytes(RESULTS / f"{name}.json", (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


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
