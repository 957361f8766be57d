"""Every bundled workflow, as a user meets it: dropped on the canvas, run with the button, its picture seen.

The pack is installed from the packed archive. The files the workflows name are there, with the demo's small pair in
them; only size and steps are lowered, in the widgets. Screenshots are left in `output/browser`.
"""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS

pytestmark = pytest.mark.slow

SIDE, STEPS = 128, 5  # with fewer, no step would lie at 0.8, where some schedules switch
SAMPLERS = ("KSampler", "RLGKSampler", "RLGSweep", "RLGBranch")
SMALL = {
    **dict.fromkeys(("EmptySD3LatentImage", "EmptyLatentImage"), {"width": SIDE, "height": SIDE}),
    **dict.fromkeys(SAMPLERS, {"steps": STEPS}),
    "RLGLoadReward": {"name": "pickscore"},  # any workflow may take it, also one that wants a gradient
    "RLGTrainLora": {"width": SIDE, "height": SIDE, "iterations": 1, "preview_every": 1},
    "RLGFlowGRPO": {"steps": 3, "cfg": 1, "groups": 1, "group_size": 2, "window": 0},
    "RLGReFL": {"steps": 4, "first_step": 2, "last_step": 3, "image_step": 1, "groups": 1},
}
(MAIN,) = [path for path in WORKFLOWS if path.stem == "RLG 01 - Text to image"]


def _load(front_end: FrontEnd, path: Path) -> None:
    front_end.drop(path)
    front_end.set_widgets(SMALL)


def _ids(front_end: FrontEnd, kind: str) -> list[int]:
    return [node["id"] for node in front_end.graph()["nodes"] if node["type"] == kind]


def _meaning(workflow: dict[str, Any]) -> dict[str, Any]:
    """What makes a workflow the same one: nodes with their values, and links."""
    nodes = {node["id"]: [node["type"], node["mode"], node.get("widgets_values") or []] for node in workflow["nodes"]}
    return {"nodes": nodes, "links": sorted(link[1:] for link in workflow["links"])}


def _overlapping(nodes: list[dict[str, Any]]) -> list[str]:
    """Pairs of nodes that cover each other as this renderer lays them out: each makes some of them larger."""
    title, pairs = 30, []
    boxes = [(node["type"], *node["pos"], *node["size"]) for node in nodes]
    for (kind, x, y, width, height), (other, left, top, wide, high) in itertools.combinations(boxes, 2):
        apart = x >= left + wide or left >= x + width or y - title >= top + high or top - title >= y + height
        if not apart:
            pairs.append(f"{kind} and {other}")
    return pairs


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_bundled_workflow_is_dropped_run_and_seen(front_end: FrontEnd, path: Path) -> None:
    front_end.drop(path)
    graph = front_end.graph()
    assert _overlapping(graph["nodes"]) == []
    saved, loaded = _meaning(json.loads(path.read_text(encoding="utf-8"))), _meaning(graph)
    for node, (_, _, values) in saved["nodes"].items():
        # Widgets that came after the file was saved are added at the end, with their defaults.
        del loaded["nodes"][node][2][len(values) :]
    assert loaded == saved
    assert front_end.problems() == []

    front_end.set_widgets(SMALL)
    run = front_end.run()
    assert run["status"]["status_str"] == "success"
    assert front_end.problems() == []
    savers = _ids(front_end, "SaveImage")
    assert savers
    for node in savers:
        files = run["outputs"][str(node)]["images"]
        pictures = [Image.open(io.BytesIO(front_end.view(file))) for file in files]
        assert all(low != high for picture in pictures for low, high in [picture.convert("L").getextrema()])
        shown = front_end.wait_for_pictures(node, len(pictures))
        assert shown == [list(picture.size) for picture in pictures]


def test_cancel_midway_then_the_next_run_succeeds(front_end: FrontEnd) -> None:
    _load(front_end, MAIN)
    front_end.set_widgets({"RLGKSampler": {"steps": 2000, "seed": 5}})
    started = front_end.start()
    front_end.page.wait_for_function("() => steps >= 3")
    front_end.cancel()
    cancelled = front_end.ended(started)
    assert "execution_interrupted" in [event for event, _ in cancelled["status"]["messages"]]
    assert 3 <= front_end.page.evaluate("() => steps") < 2000

    front_end.set_widgets({"RLGKSampler": {"steps": STEPS}})
    assert front_end.run()["status"]["status_str"] == "success"
    (saver,) = _ids(front_end, "SaveImage")
    assert front_end.wait_for_pictures(saver, 1) == [[SIDE, SIDE]]
    assert front_end.problems() == []


def test_a_saved_picture_dropped_back_restores_the_graph(front_end: FrontEnd, tmp_path: Path) -> None:
    _load(front_end, MAIN)
    front_end.set_widgets({"RLGKSampler": {"scale": 2.25, "seed": 6}})
    as_run = front_end.graph()
    (file,) = [file for output in front_end.run()["outputs"].values() for file in output["images"]]
    picture = tmp_path / file["filename"]
    picture.write_bytes(front_end.view(file))
    assert _meaning(json.loads(Image.open(picture).info["workflow"])) == _meaning(as_run)

    (other,) = [path for path in WORKFLOWS if path.stem == "RLG 02 - Scale sweep"]
    front_end.drop(other)
    assert _meaning(front_end.graph()) != _meaning(as_run)
    front_end.drop(picture)
    assert _meaning(front_end.graph()) == _meaning(as_run)
    assert front_end.problems() == []


def test_a_missing_node_and_a_missing_file_would_be_seen(front_end: FrontEnd, tmp_path: Path) -> None:
    """What the other tests find nothing of, is found where it is."""
    (path,) = [path for path in WORKFLOWS if path.stem == "RLG 06 - Two rewards"]
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node["widgets_values"] = ["missing.safetensors"]
        elif node["type"] == "VAEDecode":
            node["type"] = "NoSuchNode"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(workflow), encoding="utf-8")
    front_end.drop(broken)
    words = " ".join(front_end.problems())
    assert "NoSuchNode" in words and "missing.safetensors" in words
    front_end.page.keyboard.press("Escape")
    front_end.drop(MAIN)
    assert front_end.problems() == []
