"""The demo: the bundled workflow in a real ComfyUI server, from the base model to beyond the tuned one."""

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
from pathlib import Path

from PIL import Image

from demo.client import ComfyClient, Json, PromptError
from demo.picture import side_by_side
from demo.server import REPO, ServerError, comfy_server
from demo.ui_to_api import WorkflowError, node_info, set_widget, to_prompt
from dev import cache_folder

WORKFLOW = REPO / "workflows" / "rlg_text_to_image.json"
CHECKPOINT, LORA = "rlg_demo_sd3.safetensors", "rlg_demo_flowgrpo"
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
        pictures = {scale: sample(client, scale, arguments) for scale in arguments.scales}
    arguments.output.mkdir(parents=True, exist_ok=True)
    paths = [_write(arguments.output / f"rlg_s{scale:g}.png", png) for scale, png in pictures.items()]
    opened = [Image.open(io.BytesIO(png)) for png in pictures.values()]
    row = io.BytesIO()
    side_by_side(opened, [_title(scale) for scale in pictures]).save(row, "PNG")
    paths.append(_write(arguments.output / "rlg_comparison.png", row.getvalue()))
    print("\nPictures (drop an rlg_s*.png on ComfyUI to get its workflow):")
    for path in paths:
        print(f"  {path}")
    print("The demo's model is small and not trained: it shows patterns, not what the prompt says.")


def sample(client: ComfyClient, scale: float, arguments: argparse.Namespace) -> bytes:
    """The PNG file of the bundled workflow at one scale, with the demo's model."""
    object_info = client.object_info()
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    changes = {
        "RLGLoadModels": {"ckpt_name": CHECKPOINT, "lora_name": LORA},
        "RLGKSampler": {"scale": scale, "steps": arguments.steps, "seed": arguments.seed},
        "Positive Prompt": {"text": arguments.prompt},
        "EmptySD3LatentImage": {"width": arguments.size, "height": arguments.size},
    }
    workflow = changed(workflow, object_info, changes)
    progress = Progress(_title(scale))
    (png,) = client.run(to_prompt(workflow, object_info), workflow, progress.step)
    progress.end()
    return png


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
    """One line for one picture: it grows in place in a terminal, and comes now and then in a log."""

    BAR = 28
    LOG_EVERY = 10.0  # seconds

    def __init__(self, title: str):
        self._title = f"{title:<16}"
        self._started = self._written = time.monotonic()
        self._in_place = sys.stdout.isatty()
        self._write("loading")

    def step(self, step: int, steps: int) -> None:
        done = self.BAR * step // steps
        self._write(f"[{'#' * done}{'.' * (self.BAR - done)}] step {step}/{steps}")

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
    sources = sorted(Path(__file__).parent.glob("tiny_*.py"))
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = cache_folder(os.environ) / "demo_models" / version
    if folder.is_dir():
        return folder
    print(f"Writing the demo's model (0.3 GB, once) to {folder} ...", flush=True)
    from demo import tiny_model  # imports torch, which only this needs

    folder.parent.mkdir(parents=True, exist_ok=True)
    outdated = list(folder.parent.glob("[!.]*"))
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        config = tiny_model.TinySD3()
        models = Path(temporary) / "models"
        tiny_model.write_checkpoint(models / "checkpoints" / CHECKPOINT, config)
        tiny_model.write_peft_adapter(models / "loras" / LORA, config)
        models.rename(folder)
    for old in outdated:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write(path: Path, data: bytes) -> Path:
    """Replace a file as a whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _title(scale: float) -> str:
    if scale in (0, 1):
        meaning = ("base", "tuned")[int(scale)]
    else:
        meaning = "away" if scale < 0 else "between" if scale < 1 else "beyond"
    return f"s = {scale:g}  {meaning}"


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = [math.nan]
    if not all(-10 <= scale <= 10 for scale in scales):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers from -10 to 10, such as 0,1,2")
    return list(dict.fromkeys(scales))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--host", type=Path, required=True, metavar="PATH", help="folder of a ComfyUI, 0.3.75 or newer")
    parser.add_argument(
        "--output", type=lambda text: Path(text).resolve(), default=REPO / "output", metavar="DIR",
        help="where the pictures go (default: output/ of the repository)",
    )  # fmt: skip
    parser.add_argument("--scales", type=_scales, default="0,1,2", help="from -10 to 10, with commas (default: 0,1,2)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the workflow's)")
    parser.add_argument("--seed", type=int, help="seed of the noise (default: the workflow's)")
    parser.add_argument("--size", type=int, help="width and height in pixels (default: the workflow's)")
    parser.add_argument("--prompt", help="what the picture should show (default: the workflow's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
