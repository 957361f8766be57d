"""Evaluate a LoRA or a tuned checkpoint: pictures and scores of many prompts at several scales.

    python -m evaluation PLAN.yaml [--host COMFYUI] [-- arguments of ComfyUI]

A run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by the folder's path, since an embedded Python finds no module in the current folder
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(entry for entry in sys.path if Path(entry).resolve() != _here)]

from evaluation.command_line import carried_out
from evaluation.errors import EvaluationError
from evaluation.host_options import STOPPED, add_host_options, host_settings, parsed
from evaluation.local import LocalWorker
from evaluation.plan import load_plan
from evaluation.run import evaluate
from evaluation.worker import Job, comfy_renderer
from evaluation.workers import Workers


def main() -> int:
    return carry_out(parse(sys.argv[1:]))


def parse(arguments: Sequence[str], default_plan: Path | None = None) -> argparse.Namespace:
    """The command line; what follows `--` is ComfyUI's. `default_plan` is taken where none is named."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "plan", type=Path, nargs="?" if default_plan else None, default=default_plan, metavar="PLAN.yaml",
        help="what to evaluate; evaluation/demo.yaml is one",
    )  # fmt: skip
    add_host_options(parser, workers="workers on the Ray cluster")
    return parsed(parser, arguments)


def carry_out(options: argparse.Namespace) -> int:
    """Evaluate, and say in one line what kept it from that; the result is an exit code."""
    return carried_out(lambda: run(options), EvaluationError, OSError, stopped=STOPPED)


def run(options: argparse.Namespace) -> None:
    """Evaluate, and print the summary."""
    plan = load_plan(options.plan)
    job = Job(plan, host_settings(options), comfy_renderer)

    def workers() -> Workers:
        if options.ray is None:
            return LocalWorker(job)
        from evaluation.ray_workers import RayWorkers

        return RayWorkers(job, options.ray, options.workers)

    print(f"{evaluate(plan, workers)}\nEverything is in {plan.output.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
