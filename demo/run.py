"""The demo: what the scale does to pictures of a small trained pair, in a real ComfyUI server."""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from demo.client import ComfyClient, Json, PromptError
from demo.graphs import CFG, STEPS, Setting, combined, ramp, strengthened
from demo.measure import measure
from demo.scenes import SIDE
from demo.server import REPO, ServerError, comfy_server
from demo.tasks import TASKS
from demo.trained_pair import CHECKPOINT, LORAS, PAIR, write_models
from demo.ui_to_api import WorkflowError, node_info, set_widget, to_prompt
from environment.cache import MARKER, built_whole, cache_folder, locked, remove
from evaluation.command_line import at_least, carried_out
from files.pictures import png, write_bytes
from plots.figure import saved
from plots.reward_curve import reward_curve

WORKFLOW = REPO / "workflows" / "RLG 01 - Text to image.json"
PROMPT = "a red star to the left of a blue circle"
PROMPT_SEED = 7
"""Of the held-out prompts."""
ROWS = 6
"""Prompts in a sheet of pictures."""
_UNUSED = 24 * 3600
"""Seconds after which models of another version go: until then another clone's demo may be running on them."""


def main() -> int:
    arguments = _parser().parse_args()
    return carried_out(lambda: run(arguments), ServerError, PromptError, WorkflowError, ValueError, OSError)


def run(arguments: argparse.Namespace) -> None:
    asked = {lora: TASKS[lora].prompts(PROMPT_SEED, arguments.prompts, held_out=True) for lora in arguments.loras}
    models = demo_models()
    print(f"Starting ComfyUI from {arguments.host} on the CPU (half a minute) ...", flush=True)
    started = time.monotonic()
    with comfy_server(arguments.host, models, log=cache_folder(os.environ) / "logs" / "demo_server.log") as client:
        version = client.system_stats()["system"].get("comfyui_version", "of unknown version")
        print(f"ComfyUI {version} is ready after {time.monotonic() - started:.0f} s.\n", flush=True)
        picture = run_workflow(client)
        settings = [
            *map(Setting, arguments.scales),
            *(combined(at, 1.0) for at in arguments.switches),
            *(ramp(1.0, power) for power in arguments.powers),
            *map(strengthened, arguments.strengths),
        ]
        measured = [measure(client, lora, settings, asked[lora], arguments.seeds) for lora in asked]
    curves = [one.curve for one in measured]
    print("\nDrop rlg_text_to_image.png on ComfyUI to get its workflow; the others show what was measured:")
    _write(arguments.output / "rlg_text_to_image.png", picture)
    pictures = arguments.prompts * arguments.seeds
    for one, curve in zip(measured, curves, strict=True):
        title = f"{one.lora} LoRA, {pictures} pictures of held-out prompts at every point"
        figure = reward_curve(curve, "light", title, TASKS[one.lora].axis)
        _write(arguments.output / f"rlg_sweep_{one.lora}.png", png(np.array(one.sheet(ROWS))))
        _write(arguments.output / f"rlg_measured_{one.lora}.png", saved(figure, "png"))
        _write(arguments.output / f"rlg_measured_{one.lora}.csv", curve.csv().encode())
        print(f"\n{title}, mean [95 % interval]")
        print(one.table())


def run_workflow(client: ComfyClient) -> bytes:
    """The PNG file of the bundled workflow with the demo's models."""
    object_info = client.object_info()
    changes = {
        "RLGLoadModels": {"ckpt_name": CHECKPOINT, "lora_name": LORAS["composition"]},
        "RLGKSampler": {"steps": STEPS, "cfg": CFG},
        "Positive Prompt": {"text": PROMPT},
        "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
    }
    workflow = changed(json.loads(WORKFLOW.read_text(encoding="utf-8")), object_info, changes)
    with tqdm(desc="workflow", unit="step", total=STEPS, dynamic_ncols=True) as bar:
        (picture,) = client.run(
            to_prompt(workflow, object_info), workflow, lambda step, steps: bar.update(step - bar.n)
        )
    return picture


def changed(workflow: Json, object_info: Json, changes: dict[str, Json]) -> Json:
    """A copy of a UI workflow with other widget values: title or type of a node → input → value (None: as it is)."""
    workflow = copy.deepcopy(workflow)
    for label, values in changes.items():
        (node,) = [node for node in workflow["nodes"] if label in (node["type"], node.get("title"))]
        for name, value in values.items():
            if value is not None:
                set_widget(node, node_info(node, object_info), name, value)
    return workflow


def demo_models() -> Path:
    """A models folder with the demo's checkpoint and LoRA, written once per version of what writes them."""
    makers = [Path(__file__).parent / name for name in ("tiny_encoders.py", "trained_pair.py")]
    sources = [*makers, *sorted(PAIR.glob("*/*.safetensors")), *sorted(PAIR.glob("*/*.json"))]
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = cache_folder(os.environ) / "demo_models" / version
    with locked(folder.parent / ".lock"):
        if (folder / MARKER).is_file():
            os.utime(folder / MARKER)  # a sign of use
        else:
            print(f"Writing the demo's models (0.3 GB, once) to {folder} ...", flush=True)
            with built_whole(folder):
                write_models(folder)
        for old in {*folder.parent.glob("[!.]*")} - {folder}:
            if not _in_use(old):
                with contextlib.suppress(OSError):  # Windows keeps what is in use
                    remove(old)
    return folder


def _in_use(models: Path) -> bool:
    """Whether a demo began with these models in the last day; interrupted ones, without their marker, are of no use."""
    try:
        return time.time() - (models / MARKER).stat().st_mtime < _UNUSED
    except OSError:
        return False


def _write(path: Path, data: bytes) -> None:
    """Replace a file as a whole, and say so."""
    write_bytes(path, data)
    print(f"  {path}")


def _numbers(low: float, high: float, always: tuple[float, ...] = ()) -> Callable[[str], list[float]]:
    """Parser of a list of numbers; `always` are added to it."""

    def parse(text: str) -> list[float]:
        try:
            numbers = [float(part) for part in text.split(",") if part.strip()]
        except ValueError:
            numbers = [math.nan]
        if not all(low <= number <= high for number in numbers):
            raise argparse.ArgumentTypeError(
                f"'{text}' is not a list of numbers from {low:g} to {high:g}, such as 0,0.5,1"
            )
        return sorted({*numbers, *always})

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--host", type=Path, required=True, metavar="PATH", help="folder of a ComfyUI, 0.3.75 or newer")
    parser.add_argument(
        "--output", type=lambda text: Path(text).resolve(), default=REPO / "output", metavar="DIR",
        help="where the pictures go (default: output/ of the repository)",
    )  # fmt: skip
    parser.add_argument(
        "--scales", type=_numbers(-10, 10, always=(0.0,)), default="0,0.5,1,1.6,2.5", metavar="S,S,...",
        help="constant scales, -10 to 10; 0 is always measured too, to compare with (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--switches", type=_numbers(0, 1), default="0.2", metavar="P,P,...",
        help="combined generation: base model first, tuned one from this part of the steps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--powers", type=_numbers(0.1, 10), default="1", metavar="P,P,...",
        help="annealed guidance: from base to tuned model with this power of the progress (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--strengths", type=_numbers(-10, 10), default="", metavar="W,W,...",
        help="the tuned model alone with its LoRA at this strength, which a scale is not (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--loras", nargs="+", choices=LORAS, default=["text"], metavar="NAME",
        help=f"of {', '.join(LORAS)} (default: text, whose gain so few pictures show)",
    )  # fmt: skip
    parser.add_argument("--prompts", type=at_least(2), default=48, help="held-out prompts (default: 48)")
    parser.add_argument("--seeds", type=at_least(2), default=2, help="pictures of a prompt (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
