"""Evaluate a LoRA or a tuned checkpoint: pictures and scores of many prompts at several scales.

    python -m evaluation PLAN.yaml [--host COMFYUI] [-- arguments of ComfyUI]

A run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_line import at_least, carried_out
from evaluation.errors import EvaluationError
from evaluation.host import REPO, HostSettings, check_host
from evaluation.local import LocalWorker
from evaluation.plan import load_plan
from evaluation.run import evaluate
from evaluation.worker import Job, comfy_renderer
from evaluation.workers import Workers


def main() -> int:
    return carry_out(parse(sys.argv[1:]))


def parse(arguments: Sequence[str], default_plan: Path | None = None) -> argparse.Namespace:
    """The command line; what follows `--` is ComfyUI's. `default_plan` is taken where none is named."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser(default_plan).parse_args(arguments[:end])
    options.comfyui = tuple(arguments[end + 1 :])
    return options


def carry_out(options: argparse.Namespace) -> int:
    """Evaluate, and say in one line what kept it from that; the result is an exit code."""
    stopped = "Stopped; the same command goes on from here."
    return carried_out(lambda: run(options), EvaluationError, OSError, stopped=stopped)


def run(options: argparse.Namespace) -> None:
    """Evaluate, and print the summary."""
    plan = load_plan(options.plan)
    models = tuple(Path(folder).resolve() for folder in options.models)
    if absent := [folder for folder in models if not folder.is_dir()]:
        raise EvaluationError(
            f"--models: there is no folder {absent[0]}; name one laid out like ComfyUI's models folder."
        )
    host = HostSettings(check_host(options.host.resolve()), options.comfyui, models)
    job = Job(plan, host, comfy_renderer)

    def workers() -> Workers:
        if options.ray is None:
            return LocalWorker(job)
        from evaluation.ray_workers import RayWorkers

        return RayWorkers(job, options.ray, options.workers)

    print(f"{evaluate(plan, workers)}\nEverything is in {plan.output.resolve()}")


def default_host() -> Path | None:
    """The ComfyUI that the environment names, or the one that this extension is installed in."""
    if path := os.environ.get("COMFYUI_PATH"):
        return Path(path)
    return REPO.parent.parent if REPO.parent.name == "custom_nodes" else None


def _parser(default_plan: Path | None) -> argparse.ArgumentParser:
    host = default_host()
    result = argparse.ArgumentParser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "plan", type=Path, nargs="?" if default_plan else None, default=default_plan, metavar="PLAN.yaml",
        help="what to evaluate; evaluation/demo.yaml is one",
    )  # fmt: skip
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
        help="workers on the Ray cluster (default: one for each GPU, or else as many as the plan's threads allow)",
    )  # fmt: skip
    return result


if __name__ == "__main__":
    sys.exit(main())
