"""From an empty canvas to the first picture in five actions, with files of any name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from browser.front_end import FrontEnd
from browser.test_workflows_in_browser import MAIN, SIDE, SMALL
from demo.trained_pair import CHECKPOINT, LORAS

pytestmark = pytest.mark.slow


@pytest.fixture
def of_files_that_are_not_here(tmp_path: Path) -> Path:
    """The starter with names that no file of this user has."""
    text = MAIN.read_text(encoding="utf-8")
    (loader,) = [node for node in json.loads(text)["nodes"] if node["type"] == "RLGLoadModels"]
    checkpoint, lora, _ = loader["widgets_values"]
    path = tmp_path / MAIN.name
    path.write_text(text.replace(checkpoint, "not_here.safetensors").replace(lora, "not_here"), encoding="utf-8")
    return path


def test_five_actions(front_end: FrontEnd, of_files_that_are_not_here: Path) -> None:
    front_end.drop(of_files_that_are_not_here)
    front_end.close_everything()  # the front end says which files are missing
    front_end.choose("RLGLoadModels", "ckpt_name", CHECKPOINT)
    front_end.choose("RLGLoadModels", "lora_name", LORAS["composition"])
    front_end.set_widgets(SMALL)  # none of the five: for the tests' CPU
    run = front_end.run()

    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    front_end.fit_view()
    (saver,) = [node["id"] for node in front_end.graph()["nodes"] if node["type"] == "SaveImage"]
    assert front_end.wait_for_pictures(saver, 1) == [[SIDE, SIDE]]
