"""A real ComfyUI server of our own, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from demo.client import ComfyClient, ConnectionLost
from environment.processes import OWN_GROUP, kill_group

REPO = Path(__file__).resolve().parent.parent
PACK = "comfyui-rlg"
PACK_FILES = (
    "__init__.py", "pyproject.toml", "nodes", "plots", "rewards", "rlg_sampler", "files", "training",
    "workflows", "subgraphs", "locales", "web",
)  # fmt: skip
A_NODE_OF_OURS = "RLGKSampler"

START_LIMIT = 300.0
"""Seconds until the server has to answer; half a minute is usual on two cores."""


class ServerError(RuntimeError):
    """The server did not start, or stopped; the message is one line and names its log."""


def install_extension(custom_nodes: Path) -> None:
    """A copy of what the nodes need, under the name a `git clone` gives it."""
    folder = custom_nodes / PACK
    folder.mkdir()
    for name in PACK_FILES:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


@contextlib.contextmanager
def comfy_server(
    host: Path, models: Path, log: Path, install: Callable[[Path], None] = install_extension
) -> Iterator[ComfyClient]:
    """Start the ComfyUI in folder `host` on a free loopback port, with this extension in its `custom_nodes`.

    The server runs on the CPU in this Python, in a temporary folder of its own: nothing is read from or written to the
    host's folder but its code, and no custom nodes are loaded but what `install` puts into the empty `custom_nodes`
    that it is given. Of `models`, a models folder, `checkpoints`, `diffusion_models` and `loras` count. What the server
    says goes to `log`. However the block ends, the server and whatever it started are gone after it, and so is the
    temporary folder.

    Raises:
        ServerError: it does not start, does not take the extension, or stops while it is needed.
    """
    if not (host / "main.py").is_file():
        raise ServerError(f"{host} is not a ComfyUI folder: it has no main.py.")
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="rlg-comfyui-", ignore_cleanup_errors=True) as folder,
        log.open("w", encoding="utf-8") as output,
    ):
        base, port = Path(folder), _free_port()
        (base / "custom_nodes").mkdir()
        install(base / "custom_nodes")
        command = [sys.executable, str(host / "main.py"), *_arguments(base, models, port)]
        with _process(command, base, output) as process:
            client = ComfyClient(f"http://127.0.0.1:{port}")
            _wait_until_ready(client, process, log)
            try:
                yield client
            except ConnectionLost as error:
                raise ServerError(f"ComfyUI stopped unexpectedly; its last words: {_last_words(log)}") from error


def _arguments(base: Path, models: Path, port: int) -> list[str]:
    paths = base / "extra_model_paths.yaml"
    # JSON is YAML, and needs no YAML writer.
    kinds = {kind: kind for kind in ("checkpoints", "diffusion_models", "loras")}
    folders = {"base_path": str(models.resolve()), **kinds}
    paths.write_text(json.dumps({"rlg": folders}), encoding="utf-8")
    return [
        "--cpu", "--use-pytorch-cross-attention",
        "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch",
        "--base-directory", str(base),
        "--extra-model-paths-config", str(paths),
        "--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}",
        "--disable-api-nodes",
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes", *sorted(path.name for path in (base / "custom_nodes").iterdir()),
    ]  # fmt: skip


@contextlib.contextmanager
def _process(command: list[str], cwd: Path, output: IO[str]) -> Iterator[subprocess.Popen]:
    """A process, killed with everything that it started when the block ends: the server has nothing to put in order."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    process = None
    try:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **OWN_GROUP
        )
        yield process
    finally:
        if process is not None:
            kill_group(process)


def _wait_until_ready(client: ComfyClient, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        with contextlib.suppress(ConnectionLost):
            client.system_stats()
            break
        if process.poll() is not None:
            raise ServerError(f"ComfyUI did not start (exit code {process.returncode}): {_last_words(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"ComfyUI did not answer within {START_LIMIT:.0f} s: {_last_words(log)}")
        time.sleep(0.2)
    if A_NODE_OF_OURS not in client.object_info():
        raise ServerError(f"ComfyUI did not load the extension: {_import_error(log)}")


def _import_error(log: Path) -> str:
    """Why the host did not take the extension: it says so in the line after 'Cannot import'."""
    lines = [line for line in _log_lines(log) if "Cannot import" in line] or ["no reason given"]
    return f"{lines[-1]} (log: {log})"


def _last_words(log: Path) -> str:
    return f"{(_log_lines(log) or ['it said nothing'])[-1]} (log: {log})"


def _log_lines(log: Path) -> list[str]:
    """The log without empty lines and terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
