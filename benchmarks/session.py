"""A whole benchmark: every cell, the overhead, the memory, and the files that record them."""

from __future__ import annotations

import argparse
import gc
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from evaluation.host import Extension

from . import report
from .approximations import measure_errors, measure_times
from .machine import RESULTS, as_list, describe_machine, in_own_process, record
from .measure import EVERYTHING, Cell, Result, groups_that_fit, load_methods, measure_cell, measure_overhead
from .memory import Memory, measure_memory
from .methods import DIFFUSERS, HOOKS, OURS, PLAIN, TWO_LOADED, TWO_PASSES
from .models import Files, write_files
from .sweeps import measure_sweeps
from .task import CFG, SCALE, TEXT_TOKENS, Method

_MEMORY_LATENT = 32
_SWEEP_DEPTH, _SWEEP_ROUNDS = 2, 2


class Session:
    """One run of the benchmark.

    Args:
        arguments: of the command line, with `host` absolute.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._status = tqdm(bar_format="[{elapsed}] {desc}", file=sys.stderr, dynamic_ncols=True)
        self._budget = 60 * arguments.minutes
        smallest = (min(arguments.depth), min(arguments.latent))
        self._cells = [
            Cell(depth, latent, batch)
            for depth in sorted(arguments.depth)
            for latent in sorted(arguments.latent)
            for batch in sorted(arguments.batch + (arguments.more_batches if (depth, latent) == smallest else []))
        ]
        self._cells_left = float(len(self._cells))
        self._results: list[Result] = []
        self._sections: list[str] = []
        self._values: dict[str, Any] = {}

    def run(self) -> None:
        """Measure everything, printing each table as it is ready."""
        self._values["machine"] = describe_machine()
        self._show(_introduction(self._values["machine"], timed=not self._arguments.memory))
        with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="rlg-bench-") as folder:
            extension = Extension()
            _settle_allocator()

            def files(depth: int, dtype: torch.dtype = torch.float32) -> Files:
                self._progress(f"writing the models of depth {depth}")
                return write_files(Path(folder), depth, extension, dtype)

            depths = sorted(self._arguments.depth)
            if self._arguments.memory:
                self._compare_memory(depths[-1], files(depths[-1], torch.bfloat16), torch.bfloat16)
                return
            if self._arguments.approximate:
                self._compare_approximations(files(depths[0]), extension)
                return
            for depth in depths:
                self._compare_at(depth, files(depth), extension)
            self._compare_sweeps(files(_SWEEP_DEPTH), extension)
        self._show(report.summary_section(self._results))
        self._values["cells"] = [asdict(result) for result in self._results]

    def write(self) -> None:
        """Record what `run` showed, under a name that a later run on the same machine replaces."""
        name = result_name(self._values["machine"], self._arguments)
        record(name, "\n\n".join(self._sections), self._values)
        self._progress(f"written to {RESULTS / name}.*")

    def _compare_at(self, depth: int, files: Files, extension: Extension) -> None:
        groups = groups_that_fit(files)
        together = groups == [EVERYTHING]
        if together and depth == max(self._arguments.depth) and not self._arguments.quick:
            self._compare_memory(depth, files, torch.float32)
        for wanted in groups:
            self._progress(f"loading the models of depth {depth} for {', '.join(sorted(wanted))}")
            methods = load_methods(files, extension, wanted)
            if together and depth == min(self._arguments.depth):
                self._progress("timing the code around networks that do nothing")
                overhead = measure_overhead(methods)
                self._values["overhead"] = asdict(overhead)
                self._show(report.overhead_section(overhead))
            self._measure_cells(depth, methods, part=1 / len(groups))
            del methods
            gc.collect()

    def _measure_cells(self, depth: int, methods: dict[str, Method], part: float) -> None:
        """Measure the cells of `depth`; `methods` are this `part` of what is to be measured of each."""
        for cell in [cell for cell in self._cells if cell.depth == depth]:
            start = time.perf_counter()
            # Cells come cheapest first, and what they leave of their share goes to the dear ones.
            share = self._budget * part / self._cells_left
            result = measure_cell(
                cell, methods, self._arguments.rounds, share, lambda text, cell=cell: self._progress(f"{cell}: {text}")
            )
            self._budget -= time.perf_counter() - start
            self._cells_left -= part
            self._results.append(result)
            self._show(report.cell_section(result))

    def _progress(self, text: str) -> None:
        self._status.set_description_str(text)

    def _compare_memory(self, depth: int, files: Files, dtype: torch.dtype) -> None:
        memory: dict[str, Memory] = {}
        # diffusers would compute in the weights' dtype, which is slow in bfloat16 on a CPU; it holds one copy as well.
        others = [HOOKS, DIFFUSERS] if dtype == torch.float32 else [HOOKS]
        for name in (PLAIN, OURS, TWO_PASSES, TWO_LOADED, *others):
            self._progress(f"memory of a process of its own: {name}, depth {depth}")
            process = self._arguments.host, self._arguments.cpu
            memory[name] = in_own_process(*process, measure_memory, name, files, _MEMORY_LATENT, dtype)
        stored = str(dtype).removeprefix("torch.")
        of_methods = {name: asdict(m) for name, m in memory.items()}
        self._values["memory"] = {"depth": depth, "dtype": stored, **of_methods}
        self._show(report.memory_section(depth, stored, memory))

    def _compare_sweeps(self, files: Files, extension: Extension) -> None:
        sweeps = measure_sweeps(files, extension, 1 if self._arguments.quick else _SWEEP_ROUNDS, self._progress)
        self._values["sweeps"] = [asdict(sweep) for sweep in sweeps]
        self._show(report.sweep_section(sweeps))

    def _compare_approximations(self, files: Files, extension: Extension) -> None:
        timings = measure_times(files, extension, self._progress)
        self._show(report.approximation_times_section(timings))
        errors = measure_errors(extension, self._progress)
        self._show(report.approximation_errors_section(errors))
        of_cfgs = {f"{cfg:g}": {name: asdict(e) for name, e in modes.items()} for cfg, modes in errors.items()}
        self._values["approximations"] = {"times": asdict(timings), "errors by CFG": of_cfgs}

    def _show(self, section: str) -> None:
        self._sections.append(section)
        self._status.write(section + "\n", file=sys.stdout)


def result_name(machine: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """Of a result's files: what it was measured on, and what was asked for."""
    parts = [machine["processor"]] if machine["device"] == "cpu" else [machine["processor"], machine["device"]]
    parts += [f"{machine['torch threads']} threads", f"comfyui {machine['ComfyUI']}"]
    parts += [mode for mode in ("quick", "approximate", "memory") if getattr(arguments, mode)]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts + arguments.sizes).lower()).strip("-")


def _settle_allocator() -> None:
    """Free a large block, as any ComfyUI has done by the time it samples.

    glibc serves blocks up to the largest one freed so far (32 MiB at most) without asking the system. Until then the
    methods with the larger tensors would pay thousands of page faults a step, and the others none.
    """
    for _ in range(2):
        torch.empty(31 * 1024**2, dtype=torch.uint8).fill_(0)


def _introduction(machine: dict[str, Any], timed: bool) -> str:
    how = (
        "methods are interleaved: every round runs each once, in random order; medians, and quartiles of each round's "
        "own ratio in brackets"
        if timed
        else "each method in a process of its own"
    )
    return (
        f"# RLG benchmark\n\n{as_list(machine)}\n"
        f"- cfg {CFG}, scale {SCALE}, {TEXT_TOKENS} text tokens, euler; the same weights, noise and steps for all\n"
        f"- {how}\n"
    )
