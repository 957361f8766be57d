"""Our parts of the front end: the curve in schedule nodes, the viewer in RLG Grid.

They follow widgets and runs, leave no trace in a saved workflow, and without them the host still shows the pictures.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Locator, expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS, Server

pytestmark = pytest.mark.slow

SCHEDULES = {
    "RLGScale": [1.6, 0, 1, 1],
    "RLGCombinedGeneration": [0.8, 1],
    "RLGRamp": [0, 1, "linear", 2],
    "RLGKeyframes": ["0:0, 0.5:1, 0.8:2", "step"],
}
"""Ids and the values their widgets have at first."""
(SWEEP,) = [path for path in WORKFLOWS if path.stem == "scale_sweep"]
SMALL = {"EmptySD3LatentImage": {"width": 64, "height": 64}, "RLGSweep": {"steps": 2, "scales": "0, 1, 2"}}
LABELS = ["scale 0, seed 42", "scale 1, seed 42", "scale 2, seed 42"]
EXTENSIONS = ["RLG.ScheduleCurve", "RLG.SweepViewer"]

# With an id that no node had before: the newer front end keeps the values of widgets by it, also of what is gone.
ADD = """(type) => {
    const last = app.graph.state.lastNodeId;
    app.graph.clear();
    app.graph.state.lastNodeId = last;
    const node = LiteGraph.createNode(type);
    node.pos = [100, 100];
    app.graph.add(node);
}"""

# As large as a user has a node that he works with; `fit_view` would make a single one larger than the screen.
GO_TO = """(type) => {
    const node = app.graph.nodes.find(node => node.type === type);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [400 - node.pos[0], 200 - node.pos[1]];
    app.canvas.setDirty(true, true);
}"""


def _add(front_end: FrontEnd, kind: str) -> None:
    """One node of this type, alone on the canvas."""
    front_end.page.evaluate(ADD, kind)
    front_end.page.evaluate(GO_TO, kind)


def _curve(front_end: FrontEnd) -> Locator:
    return front_end.page.locator(".rlg-curve")


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_node_shows_its_curve_without_a_run(front_end: FrontEnd, kind: str) -> None:
    _add(front_end, kind)
    expect(_curve(front_end).get_by_role("img", name="scale")).to_be_visible()
    box = _curve(front_end).bounding_box()
    assert box["width"] >= 150 and box["height"] >= 90


def test_the_curve_follows_a_widget(front_end: FrontEnd) -> None:
    _add(front_end, "RLGRamp")
    front_end.set_widgets({"RLGRamp": {"end_scale": 3.0}})
    expect(_curve(front_end).get_by_role("img", name="scale 0 at 0, 3 at 1 (linear)")).to_be_visible()
    line = _curve(front_end).locator(".rlg-line")
    straight = line.get_attribute("points")
    front_end.set_widgets({"RLGRamp": {"curve": "power"}})
    expect(_curve(front_end).get_by_role("img", name="scale 0 at 0, 3 at 1 (power 2)")).to_be_visible()
    assert line.get_attribute("points") != straight


def test_the_curve_follows_the_keys_that_are_typed(front_end: FrontEnd) -> None:
    """Keyframes that are no schedule give the sentence that the server would give, and their curve once they are."""
    _add(front_end, "RLGKeyframes")
    _type_keyframes(front_end, "0:0, 0.5")
    expect(_curve(front_end).get_by_role("alert")).to_contain_text("keyframes: '0.5' is not position:scale;")
    _type_keyframes(front_end, "0:0, 0.5:3")
    expect(_curve(front_end).get_by_role("img", name="scale 0 at 0, 3 at 0.5 (step)")).to_be_visible()
    expect(_curve(front_end).get_by_role("alert")).to_have_count(0)


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
    _add(front_end, "RLGScale")
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
    assert front_end.run()["status"]["status_str"] == "success"
    expect(_curve(front_end).get_by_role("img", name="of the last run")).not_to_have_js_property("naturalWidth", 0)


@pytest.mark.parametrize("kind", [*SCHEDULES, "RLGGrid"])
def test_our_parts_hold_no_value(front_end: FrontEnd, kind: str) -> None:
    """Saved workflows and prompts have the widgets of the schema and nothing else, at their old positions."""
    _add(front_end, kind)
    (saved,) = front_end.graph()["nodes"]
    assert saved["widgets_values"] == ({"RLGGrid": [0, ""]} | SCHEDULES)[kind]
    prompt = front_end.page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    assert not [name for node in prompt for name in node["inputs"] if name.startswith("rlg")]


@pytest.fixture(scope="module")
def sweep(front_end: FrontEnd) -> None:
    """A small sweep, run on the server. Once: what has not changed would not run again."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL)
    assert front_end.run()["status"]["status_str"] == "success"


@pytest.fixture
def viewer(front_end: FrontEnd, sweep: None) -> Locator:
    """The viewer after that run."""
    front_end.page.evaluate(GO_TO, "RLGGrid")
    viewer = front_end.page.get_by_role("group", name="Cells of the sweep")
    _shown(viewer)
    return viewer


def _shown(pane: Locator) -> str:
    """Address of the picture that a pane shows, once it is there."""
    picture = pane.locator("img:visible").first
    expect(picture).to_have_js_property("naturalWidth", 64)
    return picture.get_attribute("src")


def test_the_viewer_flips_through_the_cells(front_end: FrontEnd, viewer: Locator) -> None:
    """With the slider, by keyboard, and by moving the mouse over the picture; each cell with its label."""
    slider = viewer.get_by_role("slider", name="Cell", exact=True)
    found = {}
    slider.press("Home")
    for i, label in enumerate(LABELS):
        expect(slider).to_have_attribute("aria-valuetext", f"{label} ({i + 1} of 3)")
        expect(viewer.locator("figcaption:visible")).to_have_text(label)
        found[label] = _shown(viewer)
        slider.press("ArrowRight")
    assert len(set(found.values())) == 3
    box = viewer.locator(".rlg-picture:visible").bounding_box()
    assert box["width"] >= 150 and box["height"] >= 150
    for i, label in enumerate(LABELS):
        front_end.page.mouse.move(box["x"] + box["width"] * (i + 0.5) / 3, box["y"] + box["height"] / 2)
        expect(slider).to_have_value(str(i))
        assert _shown(viewer) == found[label]


def test_two_cells_side_by_side(viewer: Locator) -> None:
    viewer.get_by_role("slider", name="Cell", exact=True).press("Home")
    compare = viewer.get_by_role("button", name="Compare")
    compare.click()
    other = viewer.get_by_role("slider", name="Cell to compare with")
    other.press("End")
    left, right = viewer.locator("figure").all()
    assert _shown(left) != _shown(right)
    expect(left.locator("figcaption")).to_contain_text("scale 0")
    expect(right.locator("figcaption")).to_contain_text("scale 2")
    compare.click()
    expect(right).to_be_hidden()


def test_the_node_does_not_grow_from_run_to_run(front_end: FrontEnd, viewer: Locator) -> None:
    size = "() => [...app.graph.nodes.find(node => node.type === 'RLGGrid').size]"
    before, shown = front_end.page.evaluate(size), _shown(viewer)
    front_end.set_widgets({"RLGGrid": {"title": "again"}})
    front_end.run()
    expect(viewer.locator("img:visible")).not_to_have_attribute("src", shown)
    _shown(viewer)
    assert front_end.page.evaluate(size) == pytest.approx(before, abs=1)


def test_the_pictures_are_there_again_after_a_look_at_another_tab(front_end: FrontEnd, viewer: Locator) -> None:
    front_end.command("Comfy.NewBlankWorkflow")
    expect(viewer).to_have_count(0)
    front_end.command("Workspace.PreviousOpenedWorkflow")
    front_end.page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'RLGGrid')")
    front_end.page.evaluate(GO_TO, "RLGGrid")
    _shown(viewer)  # of the run that the host has kept for the tab, which need not be the last one


def test_without_our_parts_the_host_shows_the_pictures(browser: Browser, server: Server, front_end: FrontEnd) -> None:
    """As where a user has switched them off in the settings."""
    settings = f"{server.address}/api/settings"
    request = front_end.page.context.request
    expect(request.post(settings, data={"Comfy.Extension.Disabled": EXTENSIONS})).to_be_ok()
    try:
        bare = FrontEnd(browser, server, front_end.vue_nodes)
        bare.drop(SWEEP)
        bare.set_widgets(
            SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": 7}}
        )  # else the server would not run it again
        assert bare.run()["status"]["status_str"] == "success"
        (grid,) = [node["id"] for node in bare.graph()["nodes"] if node["type"] == "RLGGrid"]
        assert bare.wait_for_pictures(grid, 1)[0] == [64, 64]
        assert bare.page.locator(".rlg-part").count() == 0
        bare.page.context.close()
    finally:
        expect(request.post(settings, data={"Comfy.Extension.Disabled": []})).to_be_ok()
