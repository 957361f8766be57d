"""Nodes on the canvas say what is so: what has no effect cannot be set, and sentences of a run are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS, is_ours

pytestmark = pytest.mark.slow

(TWO,) = [path for path in WORKFLOWS if path.stem == "RLG 06 - Two rewards"]
SMALL = {"EmptySD3LatentImage": {"width": 64, "height": 64}, "KSampler": {"steps": 2}}

WIDGET = """([type, name]) => {
    const widget = app.graph.nodes.find(node => node.type === type).widgets.find(widget => widget.name === name);
    return {value: widget.value, disabled: Boolean(widget.disabled), hidden: Boolean(widget.hidden),
            label: widget.label ?? widget.name};
}"""
CONNECT_SCHEDULE = """(type) => {
    const node = app.graph.nodes.find(node => node.type === type);
    const schedule = LiteGraph.createNode("RLGRamp");
    schedule.pos = [node.pos[0] - 400, node.pos[1]];
    app.graph.add(schedule);
    schedule.connect(0, node, node.inputs.findIndex(input => input.name === "schedule"));
}"""


def _widget(front_end: FrontEnd, kind: str, name: str) -> dict:
    return front_end.page.evaluate(WIDGET, [kind, name])


@pytest.mark.parametrize("kind", ["RLGKSampler", "RLGModel", "RLGGuider", "RLGBranch"])
def test_scale_is_idle_while_a_schedule_is_connected(front_end: FrontEnd, kind: str) -> None:
    front_end.add_alone(kind)
    free = _widget(front_end, kind, "scale")
    assert not free["disabled"]
    front_end.page.evaluate(CONNECT_SCHEDULE, kind)
    taken = _widget(front_end, kind, "scale")
    assert taken["disabled"] and taken["label"] == "scale: from schedule"
    if front_end.vue_nodes:
        expect(front_end.page.get_by_text("scale: from schedule")).to_be_visible()
    saved = front_end.graph()
    front_end.page.evaluate("async (graph) => app.loadGraphData(graph)", saved)
    assert _widget(front_end, kind, "scale") == taken
    front_end.page.evaluate(
        "(type) => { const node = app.graph.nodes.find(node => node.type === type);"
        "node.disconnectInput(node.inputs.findIndex(input => input.name === 'schedule')); }",
        kind,
    )
    assert _widget(front_end, kind, "scale") == free


def test_power_is_there_for_the_curve_that_has_one(front_end: FrontEnd) -> None:
    front_end.add_alone("RLGRamp")
    assert _widget(front_end, "RLGRamp", "power")["hidden"]
    front_end.set_widgets({"RLGRamp": {"curve": "power"}})
    assert not _widget(front_end, "RLGRamp", "power")["hidden"]
    saved = front_end.graph()
    assert saved["nodes"][0]["widgets_values"] == [0, 1, "power", 2]
    front_end.page.evaluate("async (graph) => app.loadGraphData(graph)", saved)
    assert not _widget(front_end, "RLGRamp", "power")["hidden"]


@pytest.mark.parametrize("kind", ["RLGKSampler", "RLGSweep", "RLGBranch"])
def test_a_new_node_keeps_its_seed_and_a_saved_one_its_setting(front_end: FrontEnd, kind: str) -> None:
    front_end.add_alone(kind)
    assert _widget(front_end, kind, "control_after_generate")["value"] == "fixed"
    front_end.set_widgets({kind: {"control_after_generate": "increment"}})
    front_end.page.evaluate("async (graph) => app.loadGraphData(graph)", front_end.graph())
    assert _widget(front_end, kind, "control_after_generate")["value"] == "increment"


def test_the_sentence_of_an_error_is_seen(front_end: FrontEnd) -> None:
    front_end.add_alone("RLGKeyframes")
    front_end.page.evaluate(
        """() => {
            const [schedule] = app.graph.nodes, any = LiteGraph.createNode("PreviewAny");
            any.pos = [500, 100];
            app.graph.add(any);
            schedule.connect(0, any, 0);
        }"""
    )
    front_end.set_widgets({"RLGKeyframes": {"keyframes": "0:0, 0.5"}})
    assert front_end.run()["status"]["status_str"] == "error"
    expect(front_end.page.get_by_text("keyframes: '0.5' is not position:scale").first).to_be_visible()
    _close_everything(front_end)
    assert any("'0.5' is not position:scale" in complaint for complaint in front_end.new_complaints())


def _close_everything(front_end: FrontEnd) -> None:
    """Dialogs and toasts, for the next test."""
    front_end.page.keyboard.press("Escape")
    # Some go by themselves meanwhile, so none is waited for.
    front_end.page.evaluate("document.querySelectorAll('.p-toast-close-button').forEach((button) => button.click())")
    expect(front_end.page.locator(".p-toast-message")).to_have_count(0)


def test_the_panel_of_properties_shows_no_part_of_ours(front_end: FrontEnd) -> None:
    """And a width that it sets is not the node's."""
    front_end.add_alone("RLGRamp")
    assert front_end.page.evaluate(
        """() => {
            const widget = app.graph.nodes[0].widgets.find(widget => widget.name === "rlg_curve");
            widget.width = 100;
            return widget.width === undefined && widget.options.hideInPanel;
        }"""
    )
    if front_end.server.version.startswith("0.3."):
        return
    page = front_end.page
    page.evaluate("() => app.canvas.selectNode(app.graph.nodes[0])")
    panel = page.get_by_test_id("properties-panel")
    if not panel.count():
        page.get_by_label("Toggle properties panel").first.click()
    expect(panel.get_by_text("start_scale").first).to_be_visible()
    expect(panel.get_by_text("rlg_curve")).to_have_count(0)
    width = page.locator(".rlg-curve").bounding_box()["width"]
    assert width >= 250
    page.get_by_label("Toggle properties panel").first.click()


BYPASS = """(mode) => {
    for (const node of app.graph.nodes) if (node.type === "RLGLoadLora") node.mode = mode;
    app.graph.setDirtyCanvas(true, true);
}"""


def test_a_bypassed_lora_loader_is_a_warning_where_its_model_is_used(front_end: FrontEnd, artefacts: Path) -> None:
    """The base is sampled, the node says so, and stops saying so when the loader is back."""
    front_end.drop(TWO)
    front_end.set_widgets(SMALL)
    warning = front_end.page.locator(".rlg-warnings")
    front_end.page.evaluate(BYPASS, 4)
    assert front_end.run()["status"]["status_str"] == "success"
    expect(warning).to_have_count(2)
    expect(warning.first).to_contain_text("nothing to guide")
    front_end.go_to("RLGModel")
    front_end.page.screenshot(path=artefacts / "bypassed_lora_loader.png")
    front_end.page.evaluate(BYPASS, 0)
    assert front_end.run()["status"]["status_str"] == "success"
    expect(warning).to_have_count(0)
    ours = [complaint for complaint in front_end.new_complaints() if is_ours(complaint)]
    assert ours and all("nothing to guide" in complaint for complaint in ours)
