"""Train a LoRA from a plan: what RLG Train LoRA does in a graph.

    python -m training PLAN.yaml [--host COMFYUI] [-- arguments of ComfyUI]

A run that was stopped, or killed, goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

if not __package__:  # run by the folder's path, since an embedded Python finds no module in the current folder
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(entry for entry in sys.path if Path(entry).resolve() != _here)]

from evaluation.command_line import carried_out
from evaluation.errors import EvaluationError
from evaluation.host_options import STOPPED, add_host_options, host_settings, parsed
from training.program.plan import load_plan
from training.program.progress import Progress
from training.program.run import Job, started


def main() -> int:
    options = parse(sys.argv[1:])
    return carried_out(lambda: run(options), EvaluationError, OSError, stopped=STOPPED)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows `--` is ComfyUI's."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, metavar="PLAN.yaml", help="what to train; docs/training_plans.md has one")
    add_host_options(parser, workers="workers on the Ray cluster, which share the groups of pictures")
    return parsed(parser, arguments)


def run(options: argparse.Namespace) -> None:
    """Train, and print what came of it."""
    host = host_settings(options)
    job = Job(load_plan(options.plan), host)
    print("Starting ComfyUI ...", file=sys.stderr, flush=True)
    with closing(Progress()) as progress:
        if options.ray is None:
            report = _alone(job, progress)
        else:
            from training.program.ray_team import train

            report = train(job, options.ray, options.workers, progress.show)
    print(report)


def _alone(job: Job, progress: Progress) -> str:
    training = started(job)
    with closing(training.train(progress.during)) as steps:
        for step in steps:
            progress.show(step, training.until)
    return training.report()


if __name__ == "__main__":
    sys.exit(main())
