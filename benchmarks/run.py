"""Benchmarks: an RLG step against plain CFG, two loaded models, core LoRA hooks and diffusers + PEFT, interleaved.

    python dev.py bench            all tables, some ten minutes on two cores
    python dev.py bench --quick    one small model, about a minute
    python dev.py bench --approximate   only the approximate modes: their time, and their error on the demo's pair
    python dev.py bench --training      a training iteration, beside a loop on diffusers + PEFT: time and memory
    python dev.py bench --learning      what each training method learns on the demo's model (--method: some of them)
    python dev.py bench --memory   only what weights take, at SD3.5 medium's shape in bfloat16 (14 GB of memory)

Prints the tables and writes them to benchmarks/results/, as Markdown and JSON. With a GPU it runs there.
Models too large to be loaded all at once (--depth 24) are measured in turn, each beside plain CFG and ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.command_line import at_least


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.split("\n")[0])
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--quick", action="store_true", help="depth 4 and 32 × 32 latents only")
    parser.add_argument("--memory", action="store_true", help="only measure memory, at depth 24 in bfloat16")
    parser.add_argument("--approximate", action="store_true", help="only time and error of the approximate modes")
    parser.add_argument("--training", action="store_true", help="only time and memory of training")
    parser.add_argument("--learning", action="store_true", help="only what the training methods learn")
    parser.add_argument("--method", nargs="+", default=[], help="training methods, as the tables name them (all)")
    parser.add_argument("--depth", type=at_least(1), nargs="+", help="blocks of the model, 64 × as wide (4 12)")
    parser.add_argument("--latent", type=at_least(1), nargs="+", help="sides of the latents (32 64)")
    parser.add_argument(
        "--batch", type=at_least(1), nargs="+", help="images a run (1; by default 2, 4, 8 for the smallest, too)"
    )
    parser.add_argument("--cpu", action="store_true", help="run on the processor even where there is a GPU")
    parser.add_argument("--rounds", type=at_least(1), default=11, help="rounds of each cell at most (11)")
    parser.add_argument(
        "--minutes", type=float, help="time for all rounds together (4; with --quick 0.5), or to train with each method"
    )
    parser.add_argument("--threads", type=at_least(1), help="torch's threads (its own choice)")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("depth", "latent", "batch")}
    arguments.sizes = [f"{name} {' '.join(map(str, values))}" for name, values in chosen.items() if values]
    arguments.more_batches = [] if arguments.sizes or arguments.quick else [2, 4, 8]
    arguments.batch = arguments.batch or [1]
    arguments.depth = arguments.depth or ([24] if arguments.memory else [4] if arguments.quick else [4, 12])
    arguments.latent = arguments.latent or ([32] if arguments.quick else [32, 64])
    arguments.host = arguments.host.resolve()
    arguments.training_minutes = arguments.minutes
    arguments.minutes = arguments.minutes or (0.5 if arguments.quick else 4.0)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    from benchmarks.machine import host_options
    from evaluation.host import open_host

    open_host(arguments.host, host_options(arguments.cpu))
    import comfy.utils
    import torch

    comfy.utils.set_progress_bar_enabled(False)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.training or arguments.learning:
        _measure_training(arguments)
        return
    from benchmarks.session import Session

    session = Session(arguments)
    session.run()
    session.write()


def _measure_training(arguments: argparse.Namespace) -> None:
    from benchmarks.learning import learn
    from benchmarks.training import compare

    if arguments.training:
        compare(arguments.host, arguments.cpu, min(arguments.depth), min(arguments.rounds, 3), arguments.threads)
    if arguments.learning:
        learn(arguments.method, arguments.training_minutes)


if __name__ == "__main__":
    main()
