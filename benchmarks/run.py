"""Benchmarks: an RLG step against a plain CFG step, two loaded models and diffusers + PEFT, interleaved on the CPU.

    python dev.py bench            the whole table, some ten minutes on two cores
    python dev.py bench --quick    one small model, about a minute

Prints the tables and writes them to benchmarks/results/, as Markdown and as JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.split("\n")[0])
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--quick", action="store_true", help="depth 4 and 32 × 32 latents only")
    parser.add_argument("--batching", action="store_true", help="only compare one batch with two passes")
    parser.add_argument("--depth", type=_count, nargs="+", help="blocks of the model; its width is 64 × depth (4 12)")
    parser.add_argument("--latent", type=_count, nargs="+", help="sides of the latents (32 64)")
    parser.add_argument("--batch", type=_count, nargs="+", default=[1], help="images a run (1)")
    parser.add_argument("--rounds", type=_count, default=11, help="rounds of each cell at most (11)")
    parser.add_argument("--minutes", type=float, help="time for all rounds together (6; with --quick 0.5)")
    parser.add_argument("--threads", type=_count, help="torch's threads (its own choice)")
    arguments = parser.parse_args()
    arguments.depth = arguments.depth or ([4] if arguments.quick else [4, 12])
    arguments.latent = arguments.latent or ([32] if arguments.quick else [32, 64])
    arguments.host = arguments.host.resolve()
    arguments.minutes = arguments.minutes or (0.5 if arguments.quick else 6.0)
    return arguments


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> None:
    arguments = parse_arguments()
    sys.path.insert(0, str(HERE.parent))
    from evaluation.host import open_host

    open_host(arguments.host)
    from benchmarks.session import Session

    session = Session(arguments)
    session.run()
    session.write(HERE / "results")


if __name__ == "__main__":
    main()
