"""Our parts of the front end: they leave no trace in a saved workflow. The curve in schedule nodes follows widgets."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS

pytestmark = pytest.mark.slow

SCHEDULES = {
    "RLGScale": [1.6, 0.2, 0.8, 1],
    "RLGCombinedGeneration": [0.8, 1],
    "RLGRamp": [0, 1, "linear", 2],
    "RLGKeyframes": ["0:0, 0.5:1, 0.8:2", "step"],
}
"""Ids and the values their widgets have at first."""


def _curve(front_end: FrontEnd) -> Locator:
    return front_end.page.locator(".rlg-curve")


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_node_shows_its_curve_without_a_run(front_end: FrontEnd, kind: str) -> None:
    front_end.add_alone(kind)
    expect(_curve(front_end).get_by_role("img", name="scale")).to_be_visible()
    box = _curve(front_end).bounding_box()
    assert box["width"] >= 150 and box["height"] >= 90


def test_the_curve_follows_a_widget(front_end: FrontEnd) -> None:
    front_end.add_alone("RLGRamp")
    front_end.set_widgets({"RLGRamp": {"end_scale": 3.0}})
    expect(_curve(front_end).get_by_role("img", name="scale 0 at 0, 3 at 1 (linear)")).to_be_visible()
    line = _curve(front_end).locator(".rlg-line")
    straight = line.get_attribute("points")
    front_end.set_widgets({"RLGRamp": {"curve": "power"}})
    expect(_curve(front_end).get_by_role("img", name="scale 0 at 0, 3 at 1 (power 2)")).to_be_visible()
    assert line.get_attribute("points") != straight


def test_the_curve_follows_the_keys_that_are_typed(front_end: FrontEnd) -> None:
    """Keyframes that are no schedule give the sentence that the server would give, and their curve once they are."""
    front_end.add_alone("RLGKeyframes")
    _type_keyframes(front_end, "0:0, 0.5")
    expect(_curve(front_end).get_by_role("alert")).to_contain_text("keyframes: '0.5' is not position:scale;")
    _type_keyframes(front_end, "0:0, 0.5:3")
    expect(_curve(front_end).get_by_role("img", name="scale 0 at 0, 3 at 0.5 (step)")).to_be_visible()
    expect(_curve(front_end).get_by_role("alert")).to_have_count(0)


def test_a_workflow_can_be_dropped_onto_the_curve(front_end: FrontEnd) -> None:
    front_end.add_alone("RLGRamp")
    box = _curve(front_end).bounding_box()
    front_end.drop(WORKFLOWS[0], at=(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2))
    assert len(front_end.graph()["nodes"]) > 1


def _type_keyframes(front_end: FrontEnd, text: str) -> None:
    page = front_end.page
    if front_end.vue_nodes:
        box = page.locator("[data-node-id]").get_by_role("textbox").first
        box.press("Control+A")
        box.press_sequentially(text)  # and no Enter: the curve does not wait for the end
    else:
        # On the canvas there is no element to find, and the host sets the value only when the field is closed.
        front_end.set_widgets({"RLGKeyframes": {"keyframes": text}})


def test_a_scale_from_another_node_shows_with_the_run(front_end: FrontEnd) -> None:
    """What comes through a link only the server knows; its picture takes the place of the curve."""
    front_end.add_alone("RLGScale")
    front_end.page.evaluate(
        """() => {
            const [schedule] = app.graph.nodes;
            const [float, any] = ["PrimitiveFloat", "PreviewAny"].map(type => LiteGraph.createNode(type));
            [float.pos, any.pos] = [[-200, 100], [450, 100]];
            app.graph.add(float);
            app.graph.add(any);
            float.connect(0, schedule, schedule.inputs.findIndex(input => input.name === "scale"));
            schedule.connect(0, any, 0);
        }"""
    )
    expect(_curve(front_end)).to_contain_text("scale comes from another node")
    front_end.set_widgets({"PrimitiveFloat": {"value": 1.25 + front_end.vue_nodes}})  # else the host has it already
    assert front_end.run()["status"]["status_str"] == "success"
    expect(_curve(front_end).get_by_role("img", name="of the last run")).not_to_have_js_property("naturalWidth", 0)


@pytest.mark.parametrize("kind", [*SCHEDULES, "RLGGrid"])
def test_our_parts_hold_no_value(front_end: FrontEnd, kind: str) -> None:
    """Saved workflows and prompts have the widgets of the schema and nothing else, at their old positions."""
    front_end.add_alone(kind)
    (saved,) = front_end.graph()["nodes"]
    assert saved["widgets_values"] == ({"RLGGrid": [0, ""]} | SCHEDULES)[kind]
    prompt = front_end.page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    assert not [name for node in prompt for name in node["inputs"] if name.startswith("rlg")]
