"""From an empty canvas to the first picture in five actions, with files of any name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS
from demo.scenes import SIDE
from demo.trained_pair import CHECKPOINT, LORAS

pytestmark = pytest.mark.slow

(STARTER,) = [path for path in WORKFLOWS if path.stem == "RLG 01 - Text to image"]


@pytest.fixture
def of_files_that_are_not_here(tmp_path: Path) -> Path:
    """The starter, small enough for a CPU, with names that no file of this user has."""
    workflow = json.loads(STARTER.read_text(encoding="utf-8"))
    (loader,) = [node for node in workflow["nodes"] if node["type"] == "RLGLoadModels"]
    checkpoint, lora, _ = loader["widgets_values"]
    text = json.dumps(workflow).replace(checkpoint, "not_here.safetensors").replace(lora, "not_here")
    workflow = json.loads(text)
    for node in workflow["nodes"]:
        if node["type"] == "RLGKSampler":
            node["widgets_values"][2] = 4
        elif node["type"] == "EmptySD3LatentImage":
            node["widgets_values"][:2] = [SIDE, SIDE]
    path = tmp_path / STARTER.name
    path.write_text(json.dumps(workflow), encoding="utf-8")
    return path


def test_five_actions(front_end: FrontEnd, of_files_that_are_not_here: Path) -> None:
    front_end.drop(of_files_that_are_not_here)
    front_end.close_everything()  # the front end says which files are missing
    front_end.choose("RLGLoadModels", "ckpt_name", CHECKPOINT)
    front_end.choose("RLGLoadModels", "lora_name", LORAS["composition"])
    run = front_end.run()

    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    front_end.fit_view()
    (saver,) = [node["id"] for node in front_end.graph()["nodes"] if node["type"] == "SaveImage"]
    assert front_end.wait_for_pictures(saver, 1) == [[SIDE, SIDE]]
