"""A ComfyUI server as a user has it: the packed archive installed, models under the names the workflows ask for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo import run as demo
from demo.server import PACK, comfy_server
from demo.trained_pair import CHECKPOINT, LORAS
from packed import REPO, install_packed
from workflow_files import write_workflow_files

HOST = Path(os.environ["COMFYUI_PATH"])
WORKFLOWS = sorted((REPO / "workflows").glob("*.json"))

OURS = re.compile(r"rlg|rl.?guidance", re.IGNORECASE)
"""In whatever the pack says: its files, nodes and messages all have it in their names."""
ELSEWHERE = re.compile("|".join([r"https://\S+", "rlg-comfyui-", *map(re.escape, (str(HOST), sys.prefix))]))
"""Not our words: the front end looks a workflow's packs up in the registry, which this server's rules do not let it;
and the folders of the server, of ComfyUI and of the packages it imports may have our name in theirs."""

CHECKPOINT_WIDGETS = {"CheckpointLoaderSimple": 0, "RLGLoadModels": 0}
LORA_WIDGETS = {"RLGLoadModels": 1, "RLGLoadLora": 0}

# The host's own log has no levels before 0.33, so a second pack writes down every record that is worse than INFO.
RECORDER = """
import json
import logging

class Recorder(logging.FileHandler):
    def format(self, record):
        return json.dumps([record.levelname, record.name, record.pathname, super().format(record)])

recorder = Recorder({path!r}, encoding="utf-8")
recorder.setLevel(logging.WARNING)
logging.getLogger().addHandler(recorder)
"""


def is_ours(complaint: str) -> bool:
    return OURS.search(ELSEWHERE.sub("", complaint)) is not None


@dataclass
class Server:
    """A running one."""

    address: str
    version: str
    """Of ComfyUI."""
    log: Path
    records: Path
    pages: int = 0
    """How many were opened so far."""

    def complaints(self) -> list[str]:
        """Everything from WARNING up that its loggers said, and Python's own warnings, with where each comes from."""
        found = []
        if self.records.exists():
            records = map(json.loads, self.records.read_text(encoding="utf-8").splitlines())
            found += [f"server {level} {logger} ({path}): {text}" for level, logger, path, text in records]
        printed = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return found + [f"server: {line}" for line in printed if re.search(r"\w+Warning: ", line)]


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Start one; `folder` gets its log and its models. See `demo.server.comfy_server`."""
    server = Server("", "", folder / "server.log", folder / "records.jsonl")

    def install(custom_nodes: Path) -> None:
        install_packed(custom_nodes / PACK)
        write_workflow_files(custom_nodes.parent)
        recorder = custom_nodes / "recorder"
        recorder.mkdir()
        (recorder / "prestartup_script.py").write_text(RECORDER.format(path=str(server.records)), encoding="utf-8")
        (recorder / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")

    with comfy_server(HOST, _models(folder / "models"), server.log, install) as client:
        server.address, server.version = client.address, client.system_stats()["system"]["comfyui_version"]
        yield server


def _models(folder: Path) -> Path:
    """The demo's pair under its own names, and under every name that a bundled workflow has in its loaders.

    So the files on the canvas are the ones a user drops there, unchanged, and no list is without its value.
    """
    source = demo.demo_models()
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copytree(source / "loras", folder / "loras")
    for name in {CHECKPOINT, *_chosen(CHECKPOINT_WIDGETS)}:
        _link(source / "checkpoints" / CHECKPOINT, folder / "checkpoints" / name)
    for name in _chosen(LORA_WIDGETS):
        # GenEval is about composition too; PickScore's is the other one, so that two LoRAs of one workflow differ.
        reward = "compressibility" if "PickScore" in name else "composition"
        shutil.copytree(source / "loras" / LORAS[reward], folder / "loras" / name)
    return folder


def _chosen(widgets: dict[str, int]) -> list[str]:
    """What the bundled workflows have in these widgets: type of node → position."""
    nodes = [node for path in WORKFLOWS for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]]
    return sorted({node["widgets_values"][widgets[node["type"]]] for node in nodes if node["type"] in widgets})


def _link(source: Path, target: Path) -> None:
    """Without a second copy of a large file, where the two are on one disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
