"""The pictures of the README, of the guide "How strong should it be?", of help pages and workflows, rendered anew.

    python -m demo.guide --host PATH [--only NAME ...]

Every picture is of the demo's pair. Prompts are held-out ones: in the README the first of the list, elsewhere chosen by
what the base alone makes of them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from demo.client import PromptError
from demo.figures import OPEN_PROMPT, Figure, beginning_of_list, by_noise, by_prompt, scales, with_cfg
from demo.graphs import Setting, combined, ramp
from demo.run import demo_models
from demo.server import REPO, ServerError, comfy_server
from demo.thumbnails import FIGURES as THUMBNAILS
from environment.cache import cache_folder
from evaluation.command_line import carried_out
from files.pictures import write_bytes

GUIDE, HELP = REPO / "docs" / "guide", REPO / "web" / "docs" / "images"
QUALITY = 85

BEYOND = by_prompt(scales(0, 1, 1.6, 2, 3), right=1, wrong=3, lora="text")
CFG_PER_BRANCH = by_prompt(
    [with_cfg(1, 1, 1.6), with_cfg(3, 3, 1.6), with_cfg(3, 1, 1.6), with_cfg(1, 3, 1.6)], right=2, wrong=2
)
COMBINED = by_noise([*scales(0, 1, 2), combined(0.2, 2), combined(0.5, 2)], OPEN_PROMPT, 6)
CONSTANT = Setting(2.0, ("RLGKeyframes", {"keyframes": "0:2", "interpolation": "step"}), name="s = 2")
ANNEALING = by_prompt([CONSTANT, ramp(2, 0.5), ramp(2, 1), ramp(2, 3)], right=1, wrong=2, curves=True)
FORGETFUL = by_prompt(scales(0, 1, 2, 4, 6), right=2, wrong=1, lora="compressibility")
HERO = beginning_of_list(scales(0, 0.5, 1, 1.6, 2, 3), {"composition": 3, "text": 5}, side=160)
FIGURES: dict[Path, Figure] = {
    REPO / "docs" / "demo_sweep.jpg": HERO,
    GUIDE / "interpolation.jpg": by_prompt(scales(0, 0.25, 0.5, 0.75, 1), right=1, wrong=3, lora="text"),
    GUIDE / "extrapolation.jpg": BEYOND,
    GUIDE / "over_guidance.jpg": by_prompt(scales(1, 2, 4, 6, 10), right=2, wrong=2),
    GUIDE / "over_guidance_compressibility.jpg": FORGETFUL,
    GUIDE / "below_zero.jpg": by_prompt(scales(-2, -1, 0, 1), right=1, wrong=2),
    GUIDE / "combined_generation.jpg": COMBINED,
    GUIDE / "annealing.jpg": ANNEALING,
    GUIDE / "cfg_per_branch.jpg": CFG_PER_BRANCH,
    HELP / "scale.jpg": BEYOND,
    HELP / "cfg_per_branch.jpg": CFG_PER_BRANCH,
    HELP / "combined_generation.jpg": COMBINED,
    HELP / "annealing.jpg": ANNEALING,
    **THUMBNAILS,
}  # fmt: skip
"""File → what draws it."""


def main() -> int:
    arguments = _parser().parse_args()
    of_figure: dict[Figure, list[Path]] = {}
    for path, draw in FIGURES.items():
        if arguments.only is None or path.stem in arguments.only:
            of_figure.setdefault(draw, []).append(path)
    return carried_out(lambda: _render(arguments.host, of_figure), ServerError, PromptError, ValueError, OSError)


def _render(host: Path, of_figure: dict[Figure, list[Path]]) -> None:
    log = cache_folder(os.environ) / "logs" / "guide_server.log"
    with comfy_server(host, demo_models(), log) as client:
        for draw, paths in of_figure.items():
            file = io.BytesIO()
            draw(client).save(file, "JPEG", optimize=True, quality=QUALITY)
            for path in paths:
                write_bytes(path, file.getvalue())
                print(f"{path.relative_to(REPO)}: {len(file.getvalue()) / 1000:.0f} kB", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="guide", description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, required=True, metavar="PATH", help="folder of a ComfyUI, 0.3.75 or newer")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[path.stem for path in FIGURES],
        help="these figures, by name without suffix (default: all)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
