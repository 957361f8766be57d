"""The bundled workflows load in a ComfyUI that has nothing but this pack, and turn into prompts it can run."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.ui_to_api import NOTES, WorkflowError, set_widget, to_prompt, widget_slots

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
MAIN = "RLG 01 - Text to image"
TITLE = 30
"""Height of a node's title, which stands above its position."""


@pytest.fixture
def workflow() -> dict[str, Any]:
    (path,) = [path for path in WORKFLOWS if path.stem == MAIN]
    return json.loads(path.read_text(encoding="utf-8"))


def _node(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_bundled_workflow_is_consistent_and_needs_no_other_pack(path: Path, object_info: dict[str, Any]) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert sorted(node["order"] for node in nodes.values()) == list(range(len(nodes)))
    assert {node["type"] for node in nodes.values()} - NOTES <= object_info.keys()

    for link_id, origin, out_slot, target, in_slot, kind in workflow["links"]:
        output, socket = nodes[origin]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link_id in output["links"] and socket["link"] == link_id
        assert kind == output["type"] and socket["type"] in (kind, "*")
    links = {link[0] for link in workflow["links"]}
    assert links == {i for node in nodes.values() for output in node["outputs"] for i in output["links"]}
    assert links == {s["link"] for node in nodes.values() for s in node["inputs"] if s["link"] is not None}

    for node in nodes.values():
        if node["type"] not in NOTES:
            outputs = [output["type"] for output in node["outputs"]]
            # A newer host's node may have more of them: the front end appends those on loading.
            assert outputs == list(object_info[node["type"]]["output"])[: len(outputs)]
    assert to_prompt(workflow, object_info)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_values_of_a_bundled_workflow_are_ones_its_widgets_can_hold(
    path: Path, object_info: dict[str, Any]
) -> None:
    """Catches what positional values hide: a saved list that is one off."""
    files = {"ckpt_name", "lora_name", "unet_name"}  # what the user has; the lists are empty here
    for node in to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info).values():
        info = object_info[node["class_type"]]["input"]
        for name, (kind, *options) in {**info["required"], **info.get("optional", {})}.items():
            value = node["inputs"].get(name)
            if value is None or isinstance(value, list) or name in files:
                continue
            if kind == "COMBO" or isinstance(kind, list):
                assert value in (options[0]["options"] if kind == "COMBO" else kind)
            else:
                assert isinstance(value, {"INT": int, "FLOAT": int | float, "STRING": str, "BOOLEAN": bool}[kind])
            if kind in ("INT", "FLOAT"):
                assert options[0]["min"] <= value <= options[0]["max"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_bundled_workflow_comes_with_a_prompt(path: Path, object_info: dict[str, Any]) -> None:
    """Run as it is, it shows something: the positive prompt says what, wherever its text comes from."""
    prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)
    positives = [node["inputs"]["positive"][0] for node in prompt.values() if "positive" in node["inputs"]]
    assert positives
    for node in positives:
        text = prompt[node]["inputs"]["text"]
        if isinstance(text, list):
            (text,) = prompt[text[0]]["inputs"].values()
        assert text.strip()


def test_the_names_say_whose_the_workflows_are_and_sort() -> None:
    """The template browser shows the file's name as the title, and finds by it. ASCII: git quotes other names."""
    names = [path.stem for path in WORKFLOWS]
    assert all(re.fullmatch(r"RLG \d\d - [A-Z][A-Za-z ]+", name) for name in names)
    assert [int(name[4:6]) for name in names] == list(range(1, len(names) + 1))
    assert all(path.with_suffix(".jpg").is_file() for path in WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_front_end_knows_where_the_missing_files_of_a_workflow_are(path: Path) -> None:
    """A model is named at its loader; a LoRA's folder at the root, as no file in a list has the folder's name."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    named = {("loras", model["name"].split("/")[0]) for model in workflow.get("models", [])}
    at_loaders = (model for node in workflow["nodes"] for model in node["properties"].get("models", []))
    named |= {(model["directory"], model["name"]) for model in at_loaders}
    needed = {
        "RLGLoadModels": ["checkpoints", "loras"],
        "RLGLoadLora": ["loras"],
        "CheckpointLoaderSimple": ["checkpoints"],
        "UNETLoader": ["diffusion_models"],
    }
    nodes = [node for node in workflow["nodes"] if node["type"] in needed]
    assert named == {pair for node in nodes for pair in zip(needed[node["type"]], node["widgets_values"], strict=False)}


def _boxes(workflow: dict[str, Any]) -> dict[int, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node with its title, on the canvas."""
    return {
        node["id"]: (x, y - TITLE, x + width, y + height)
        for node in workflow["nodes"]
        for (x, y), (width, height) in [(node["pos"], node["size"])]
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_of_a_bundled_workflow_do_not_overlap(path: Path) -> None:
    boxes = list(_boxes(json.loads(path.read_text(encoding="utf-8"))).values())
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[:i]:
            apart_across = left >= other_right or other_left >= right
            apart_down = top >= other_bottom or other_top >= bottom
            assert apart_across or apart_down


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_bundled_workflow_opens_in_a_size_that_can_be_read(path: Path) -> None:
    """All of it on the screen, beside the front end's bars: the first one's on a small screen."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    width, height = (1280, 800) if path.stem == MAIN else (1920, 1080)
    view = workflow["extra"]["ds"]
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    lefts, tops, rights, bottoms = zip(*_boxes(workflow).values(), *groups, strict=True)

    def on_screen(x: float, y: float) -> tuple[float, float]:
        return tuple(
            round((value + offset) * view["scale"]) for value, offset in zip((x, y), view["offset"], strict=True)
        )

    assert view["scale"] >= 0.74
    assert on_screen(min(lefts), min(tops)) >= (60, 90)
    assert all(
        value <= limit for value, limit in zip(on_screen(max(rights), max(bottoms)), (width, height), strict=True)
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_link_of_a_bundled_workflow_runs_backwards_or_behind_a_node(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    boxes, kinds = _boxes(workflow), {node["id"]: node["type"] for node in workflow["nodes"]}
    for _, origin, out_slot, target, in_slot, name in workflow["links"]:
        _, top, right, _ = boxes[origin]
        left, target_top, _, _ = boxes[target]
        start, end = (right, _socket(top, out_slot)), (left, _socket(target_top, in_slot))
        words = f"{name} from {kinds[origin]} {origin} to {kinds[target]} {target}"
        assert start[0] < end[0], words
        for x, y in _curve(start, end):
            behind = {i for i, box in boxes.items() if box[0] + 2 < x < box[2] - 2 and box[1] < y < box[3]}
            assert behind <= {origin, target}, f"{words} runs behind {[kinds[i] for i in behind]}"


def _socket(top: float, slot: int) -> float:
    return top + TITLE + 20 * (slot + 0.7)


def _curve(start: tuple[float, float], end: tuple[float, float]) -> Iterator[tuple[float, float]]:
    """As the front end draws a link: a Bézier curve, level at both ends, with a quarter of the way as handles."""
    handle = math.dist(start, end) / 4
    (x0, y0), (x3, y3) = start, end
    for i in range(101):
        t = i / 100
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        yield a * x0 + b * (x0 + handle) + c * (x3 - handle) + d * x3, (a + b) * y0 + (c + d) * y3


def test_prompt_of_the_main_workflow(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    prompt = to_prompt(workflow, object_info)
    kinds = {node["class_type"]: node_id for node_id, node in prompt.items()}
    loader, sampler = kinds["RLGLoadModels"], prompt[kinds["RLGKSampler"]]["inputs"]
    assert sampler["base"] == [loader, 0]
    assert sampler["tuned"] == [loader, 1]
    assert {name: value for name, value in sampler.items() if not isinstance(value, list)} == {
        "seed": 42, "steps": 28, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1, "scale": 1.6,
    }  # fmt: skip


def test_a_widget_is_set_by_name(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    sampler = _node(workflow, "RLGKSampler")
    set_widget(sampler, object_info["RLGKSampler"], "steps", 7)
    inputs = to_prompt(workflow, object_info)[str(sampler["id"])]["inputs"]
    assert inputs["steps"] == 7
    assert inputs["cfg"] == 4.5


def test_stock_seeds_have_a_control_widget_too(object_info: dict[str, Any]) -> None:
    names = [name for name, _ in widget_slots(object_info["KSampler"])]
    assert names == ["seed", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"]


def _break(workflow: dict[str, Any], what: str) -> None:
    sampler = _node(workflow, "RLGKSampler")
    if what == "unknown":
        sampler["type"] = "NoSuchNode"
    elif what == "bypassed":
        sampler["mode"] = 4
    elif what == "one value less":
        sampler["widgets_values"].pop()
    elif what == "not connected":
        sampler["inputs"][0]["link"] = None
    elif what == "link without an entry":
        sampler["inputs"][0]["link"] = 99
    elif what == "link from nowhere":
        workflow["links"][0][1] = 99
    elif what == "another input":
        sampler["inputs"][0]["name"] = "model"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unknown", "NoSuchNode.*no such node"),
        ("bypassed", "RLGKSampler.*bypassed"),
        ("one value less", "7 widget values.*10 widgets"),
        ("not connected", "input 'base' is not connected"),
        ("link without an entry", "link 99"),
        ("link from nowhere", "node 99"),
        ("another input", "'base' is not connected"),
    ],
)
def test_a_workflow_that_cannot_run_is_one_clear_sentence(
    workflow: dict[str, Any], object_info: dict[str, Any], what: str, words: str
) -> None:
    broken = copy.deepcopy(workflow)
    _break(broken, what)
    with pytest.raises(WorkflowError, match=words) as caught:
        to_prompt(broken, object_info)
    assert "\n" not in str(caught.value)
