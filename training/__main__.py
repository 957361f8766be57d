"""Train a LoRA from a plan: what RLG Train LoRA does in a graph, bit for bit.

    python -m training PLAN.yaml [--host COMFYUI] [-- arguments of ComfyUI]

A run that was stopped, or killed, goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from evaluation.__main__ import default_host
from evaluation.command_line import at_least, carried_out
from evaluation.errors import EvaluationError
from evaluation.host import HostSettings, check_host
from training.program.plan import load_plan
from training.program.progress import Progress
from training.program.run import Job, started


def main() -> int:
    options = parse(sys.argv[1:])
    stopped = "Stopped; the same command goes on from here."
    return carried_out(lambda: run(options), EvaluationError, OSError, stopped=stopped)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows `--` is ComfyUI's."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:end])
    options.comfyui = tuple(arguments[end + 1 :])
    return options


def run(options: argparse.Namespace) -> None:
    """Train, and print what came of it."""
    models = tuple(Path(folder).resolve() for folder in options.models)
    if absent := [folder for folder in models if not folder.is_dir()]:
        raise EvaluationError(
            f"--models: there is no folder {absent[0]}; name one laid out like ComfyUI's models folder."
        )
    job = Job(load_plan(options.plan), HostSettings(check_host(options.host.resolve()), options.comfyui, models))
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


def _parser() -> argparse.ArgumentParser:
    host = default_host()
    result = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("plan", type=Path, metavar="PLAN.yaml", help="what to train; docs/training.md has one")
    result.add_argument(
        "--host", type=Path, default=host, required=host is None, metavar="PATH",
        help="folder of a ComfyUI (default: COMFYUI_PATH, or the one that this is installed in)",
    )  # fmt: skip
    result.add_argument(
        "--models", type=Path, action="append", default=[], metavar="DIR",
        help="another folder laid out like ComfyUI's models folder; may be given several times",
    )  # fmt: skip
    result.add_argument(
        "--ray", metavar="ADDRESS",
        help="work on a Ray cluster: its address, auto for the one that this machine belongs to, or local",
    )  # fmt: skip
    result.add_argument(
        "--workers", type=at_least(1), metavar="N",
        help="workers on the Ray cluster, which share the groups of pictures (default: one for each GPU, or else as "
        "many as the plan's threads allow)",
    )  # fmt: skip
    return result


if __name__ == "__main__":
    sys.exit(main())
