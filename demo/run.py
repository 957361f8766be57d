"""The demo: what the scale does to pictures of a small trained pair, in a real ComfyUI server."""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from demo import report
from demo.client import ComfyClient, Json, PromptError
from demo.graphs import CFG, STEPS
from demo.measure import Measured, Setting, measure
from demo.scenes import SIDE, prompts
from demo.server import REPO, ServerError, comfy_server
from demo.trained_pair import CHECKPOINT, LORAS, PAIR, write_models
from demo.ui_to_api import WorkflowError, node_info, set_widget, to_prompt
from dev import cache_folder
from files.replacing import replacing

WORKFLOW = REPO / "workflows" / "rlg_text_to_image.json"
PROMPT = "a red star to the left of a blue circle"
PROMPT_SEED = 7
"""Of the held-out prompts."""
ROWS = 6
"""Prompts in a sheet of pictures."""
INTERRUPTED = 130
"""The exit code that shells give a program ended by Ctrl-C."""


def main() -> int:
    arguments = _parser().parse_args()
    # A kill or a closed terminal would end Python on the spot and leave the server behind.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        run(arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except (ServerError, PromptError, WorkflowError, OSError) as error:
        print(f"\nError: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    models = demo_models()
    print(f"Starting ComfyUI from {arguments.host} on the CPU (half a minute) ...", flush=True)
    started = time.monotonic()
    with comfy_server(arguments.host, models, log=cache_folder(os.environ) / "logs" / "demo_server.log") as client:
        version = client.system_stats()["system"].get("comfyui_version", "of unknown version")
        print(f"ComfyUI {version} is ready after {time.monotonic() - started:.0f} s.\n", flush=True)
        picture = run_workflow(client)
        measured = [run_measurement(client, lora, arguments) for lora in LORAS]
    print("\nPictures (drop rlg_text_to_image.png on ComfyUI to get its workflow):")
    _write(arguments.output / "rlg_text_to_image.png", picture)
    for one in measured:
        _write(arguments.output / f"rlg_sweep_{one.lora}.png", _png(report.sheet(one, ROWS)))
    found = [point for one in measured for point in report.points(one)]
    _write(arguments.output / "rlg_measured.png", report.plot(found, arguments.prompts * arguments.seeds))
    text = io.StringIO()
    report.write_csv(found, text)
    _write(arguments.output / "rlg_measured.csv", text.getvalue().encode())
    for lora in LORAS:
        print(f"\n{lora} LoRA, {arguments.prompts} held-out prompts x {arguments.seeds} seeds, mean [95 % interval]")
        print(report.table([point for point in found if point.lora == lora]))


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
    progress = Progress("workflow", "step")
    (png,) = client.run(to_prompt(workflow, object_info), workflow, progress.update)
    progress.end()
    return png


def run_measurement(client: ComfyClient, lora: str, arguments: argparse.Namespace) -> Measured:
    asked = prompts(PROMPT_SEED, arguments.prompts, held_out=True)
    progress = Progress(lora, "prompt")
    settings = [*(Setting(scale) for scale in arguments.scales), *(Setting(1.0, at) for at in arguments.switches)]
    measured = measure(client, lora, settings, asked, arguments.seeds, lambda done: progress.update(done, len(asked)))
    progress.end()
    return measured


def changed(workflow: Json, object_info: Json, changes: dict[str, Json]) -> Json:
    """A copy of a UI workflow with other widget values: title or type of a node → input → value (None: as it is)."""
    workflow = copy.deepcopy(workflow)
    for label, values in changes.items():
        (node,) = [node for node in workflow["nodes"] if label in (node["type"], node.get("title"))]
        for name, value in values.items():
            if value is not None:
                set_widget(node, node_info(node, object_info), name, value)
    return workflow


class Progress:
    """One line for one task: it grows in place in a terminal, and comes now and then in a log."""

    BAR = 28
    LOG_EVERY = 10.0  # seconds

    def __init__(self, title: str, unit: str):
        self._title, self._unit = f"{title:<16}", unit
        self._started = self._written = time.monotonic()
        self._in_place = sys.stdout.isatty()
        self._write("loading")

    def update(self, done: int, total: int) -> None:
        filled = self.BAR * done // total
        self._write(f"[{'#' * filled}{'.' * (self.BAR - filled)}] {self._unit} {done}/{total}")

    def end(self) -> None:
        self._write("done", last=True)

    def _write(self, state: str, last: bool = False) -> None:
        now = time.monotonic()
        line = f"{self._title} {state:<{self.BAR + 18}} {now - self._started:5.1f} s"
        if self._in_place:
            print(f"\r{line}", end="\n" if last else "", flush=True)
        elif last or now - self._written > self.LOG_EVERY:
            self._written = now
            print(line, flush=True)


def demo_models() -> Path:
    """A models folder with the demo's checkpoint and LoRA, written once per version of what writes them."""
    makers = [Path(__file__).parent / name for name in ("tiny_encoders.py", "trained_pair.py")]
    sources = [*makers, *sorted(PAIR.glob("*/*.safetensors")), *sorted(PAIR.glob("*/*.json"))]
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = cache_folder(os.environ) / "demo_models" / version
    if folder.is_dir():
        return folder
    print(f"Writing the demo's models (0.3 GB, once) to {folder} ...", flush=True)

    folder.parent.mkdir(parents=True, exist_ok=True)
    outdated = list(folder.parent.glob("[!.]*"))
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        models = Path(temporary) / "models"
        write_models(models)
        models.rename(folder)
    for old in outdated:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Replace a file as a whole, and say so."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
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


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least}")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--host", type=Path, required=True, metavar="PATH", help="folder of a ComfyUI, 0.3.75 or newer")
    parser.add_argument(
        "--output", type=lambda text: Path(text).resolve(), default=REPO / "output", metavar="DIR",
        help="where the pictures go (default: output/ of the repository)",
    )  # fmt: skip
    parser.add_argument(
        "--scales", type=_numbers(-10, 10, always=(1.0,)), default="0,0.5,1,2,3,4,6", metavar="S,S,...",
        help="constant scales, -10 to 10; 1 is always measured too, to compare with (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--switches", type=_numbers(0, 1), default="0.5,0.7", metavar="P,P,...",
        help="combined generation: base model first, tuned one from this part of the steps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--prompts", type=_at_least(2), default=12, help="held-out prompts (default: 12)")
    parser.add_argument("--seeds", type=_at_least(2), default=4, help="pictures of a prompt (default: 4)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
