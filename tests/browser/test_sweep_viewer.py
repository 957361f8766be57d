"""The viewer in RLG Grid: every cell can be reached and compared, and one goes on from it.

Without it the host still shows the pictures.
"""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS, Server

pytestmark = pytest.mark.slow

(SWEEP,) = [path for path in WORKFLOWS if path.stem == "RLG 02 - Scale sweep"]
(CURVE,) = [path for path in WORKFLOWS if path.stem == "RLG 09 - Reward curve"]
SMALL = {"EmptySD3LatentImage": {"width": 64, "height": 64}, "RLGSweep": {"steps": 2, "scales": "0, 1, 2"}}
LABELS = ["scale 0, seed 42", "scale 1, seed 42", "scale 2, seed 42"]
TABLE = [f"switch {switch}, scale {scale}, seed 42" for switch in (0, 0.5) for scale in (1, 1.5, 2)]
EXTENSIONS = ["RLG.ScheduleCurve", "RLG.SweepViewer"]
ADD_AXES = """() => {
    const sweep = app.graph.nodes.find(({type}) => type === "RLGSweep");
    let inner = sweep;
    for (const [vary, values] of [["seed", "42, 43"], ["power", "1, 3"]]) {
        const axis = LiteGraph.createNode("RLGAxis");
        axis.pos = [inner.pos[0] - 400, inner.pos[1] + 700];
        app.graph.add(axis);
        for (const [name, value] of [["vary", vary], ["values", values]])
            axis.widgets.find(widget => widget.name === name).value = value;
        axis.connect(0, inner, inner.inputs.findIndex(({name}) => name === "axis"));
        inner = axis;
    }
}"""


# Two LoRAs, and between them and the sweep an axis that is bypassed.
ADD_LORAS = """() => {
    const sweep = app.graph.nodes.find(({type}) => type === "RLGSweep");
    const loader = app.graph.nodes.find(({type}) => type === "RLGLoadModels");
    const added = ["RLGAxis", "RLGLoraAxis"].map((type, index) => {
        const axis = LiteGraph.createNode(type);
        axis.pos = [sweep.pos[0] - 400, sweep.pos[1] + 700 + 300 * index];
        app.graph.add(axis);
        return axis;
    });
    const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value; };
    const connect = (from, slot, to, name) =>
        from.connect(slot, to, to.inputs.findIndex(input => input.name === name));
    const [bypassed, loras] = added;
    set(bypassed, "vary", "cfg");
    set(bypassed, "values", "1, 2");
    bypassed.mode = 4;
    connect(bypassed, 0, sweep, "axis");
    connect(loras, 0, bypassed, "axis");
    connect(loader, 0, loras, "model");
    const names = loras.widgets.find(({name}) => name === "lora_1").options.values.slice(0, 2);
    names.forEach((name, index) => set(loras, `lora_${index + 1}`, name));
    return names;
}"""


@pytest.fixture(scope="module")
def sweep(front_end: FrontEnd) -> None:
    """A small sweep, run on the server. Once: what has not changed would not run again."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL)
    assert front_end.run()["status"]["status_str"] == "success"


@pytest.fixture
def viewer(front_end: FrontEnd, sweep: None) -> Locator:
    """The viewer after that run."""
    return _viewer(front_end)


def _viewer(front_end: FrontEnd) -> Locator:
    front_end.go_to("RLGGrid")
    viewer = front_end.page.get_by_role("group", name="Cells of the sweep")
    _shown(viewer)
    return viewer


def _picture(viewer: Locator) -> Locator:
    return viewer.locator(".rlg-picture")


def _shown(viewer: Locator) -> str:
    """Address of the picture that is chosen, once it is there."""
    picture = _picture(viewer).locator("img:not(.rlg-under)")
    expect(picture).to_have_js_property("naturalWidth", 64)
    return picture.get_attribute("src")


def _says(viewer: Locator, label: str) -> None:
    expect(viewer.locator("figcaption")).to_have_text(label)


def test_the_viewer_flips_through_the_cells(viewer: Locator) -> None:
    """With the slider and by keyboard; each cell with its label."""
    slider = viewer.get_by_role("slider", name="scale")
    found = {}
    slider.press("Home")
    for i, label in enumerate(LABELS):
        expect(slider).to_have_attribute("aria-valuetext", f"{label} ({i + 1} of 3)")
        _says(viewer, label)
        found[label] = _shown(viewer)
        slider.press("ArrowRight")
    assert len(set(found.values())) == 3
    box = _picture(viewer).bounding_box()
    assert box["width"] >= 150 and box["height"] >= 150
    for label in LABELS:
        viewer.get_by_role("button", name=label).click()
        _says(viewer, label)
        assert _shown(viewer) == found[label]
    _picture(viewer).press("ArrowLeft")
    _says(viewer, LABELS[1])
    viewer.get_by_role("button", name=LABELS[1]).press("ArrowLeft")
    _says(viewer, LABELS[0])


def test_a_moving_mouse_changes_nothing(front_end: FrontEnd, viewer: Locator) -> None:
    viewer.get_by_role("button", name=LABELS[1]).click()
    box, shown = _picture(viewer).bounding_box(), _shown(viewer)
    for part in (0.1, 0.5, 0.9):
        front_end.page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2)
    _says(viewer, LABELS[1])
    assert _shown(viewer) == shown


def test_two_cells_are_compared_by_wiping(front_end: FrontEnd, viewer: Locator) -> None:
    """Left of the divider is the one, right of it the other; it is dragged, or moved by keys."""
    viewer.get_by_role("button", name=LABELS[2]).click()
    compare = viewer.get_by_role("button", name="Compare")
    compare.click()
    viewer.get_by_role("combobox", name="Cell to compare with").select_option(LABELS[0])
    _says(viewer, f"{LABELS[0]} | {LABELS[2]}")
    under = viewer.locator(".rlg-under")
    expect(under).to_have_js_property("naturalWidth", 64)
    assert under.get_attribute("src") != _shown(viewer)
    box = _picture(viewer).bounding_box()
    middle = box["y"] + box["height"] / 2
    mouse = front_end.page.mouse
    mouse.move(box["x"] + box["width"] / 2, middle)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.25, middle)
    mouse.up()
    wipe = viewer.get_by_role("slider", name="Wipe")
    assert float(wipe.input_value()) == pytest.approx(25, abs=1)
    mouse.move(box["x"] + box["width"] * 0.75, middle)
    assert float(wipe.input_value()) == pytest.approx(25, abs=1)
    wipe.press("End")
    expect(under).to_have_css("clip-path", "inset(0px 0% 0px 0px)")
    compare.click()
    expect(under).to_be_hidden()
    _says(viewer, LABELS[2])


def test_the_node_does_not_grow_from_run_to_run(front_end: FrontEnd, viewer: Locator) -> None:
    size = "() => [...app.graph.nodes.find(node => node.type === 'RLGGrid').size]"
    before, shown = front_end.page.evaluate(size), _shown(viewer)
    front_end.set_widgets({"RLGGrid": {"title": "again"}})
    front_end.run()
    expect(_picture(viewer).locator("img:not(.rlg-under)")).not_to_have_attribute("src", shown)
    _shown(viewer)
    assert front_end.page.evaluate(size) == pytest.approx(before, abs=1)


def test_the_pictures_are_there_again_after_a_look_at_another_tab(front_end: FrontEnd, viewer: Locator) -> None:
    front_end.command("Comfy.NewBlankWorkflow")
    expect(viewer).to_have_count(0)
    front_end.command("Workspace.PreviousOpenedWorkflow")
    front_end.page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'RLGGrid')")
    front_end.go_to("RLGGrid")
    _shown(viewer)  # of the run that the host has kept for the tab, which need not be the last one


def test_a_picture_goes_to_load_image(front_end: FrontEnd, viewer: Locator) -> None:
    """The host shows it there, and it is the very picture."""
    viewer.get_by_role("button", name=LABELS[1]).click()
    shown = front_end.page.context.request.get(_address(front_end, _shown(viewer))).body()
    viewer.get_by_role("button", name="To Load Image").click()
    name = front_end.until(
        lambda: front_end.page.evaluate(
            "() => app.graph.nodes.find(node => node.type === 'LoadImage')?.widgets[0].value"
        ),
        "there is no Load Image",
    )
    assert front_end.problems() == []
    assert front_end.view({"filename": name, "subfolder": "", "type": "input"}) == shown
    front_end.page.evaluate("() => app.graph.remove(app.graph.nodes.find(node => node.type === 'LoadImage'))")


MANY = 60
# As a sweep whose cells the server has; their pictures are those of another one.
KNOWN_CELLS = """(count) => {
    const {id} = app.graph.nodes.find(({type}) => type === "RLGSweep");
    const labels = Array.from({length: count}, (_, number) => `scale ${number}, seed 7`);
    const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
    const draw = canvas.getContext("2d");
    for (let number = 0; number < count; number++) {
        draw.fillStyle = `hsl(${number * 6} 60% 50%)`;
        draw.fillRect(0, 0, 64, 64);
        const pictures = {[number]: canvas.toDataURL("image/jpeg")};
        app.api.dispatchCustomEvent("rlg_cells", {node: String(id), begins: !number, labels, pictures});
    }
}"""


def test_many_known_cells_come_at_once_and_who_stands_on_one_stays_there(
    front_end: FrontEnd, viewer: Locator, artefacts: Path
) -> None:
    """Nothing that has not changed is made anew: neither the small pictures nor the focus are lost."""
    front_end.page.evaluate(KNOWN_CELLS, MANY)
    small = viewer.locator(".rlg-map img")
    expect(small).to_have_count(MANY)
    stood_on = viewer.get_by_role("button", name="scale 5, seed 7", exact=True)
    stood_on.click()
    small.evaluate_all("(images) => { window.earlier = images; }")
    front_end.page.evaluate(KNOWN_CELLS, MANY)
    _says(viewer, "scale 5, seed 7 (preview)")
    expect(small).to_have_count(MANY)
    assert small.evaluate_all("(images) => images.every((image, number) => image === earlier[number])")
    expect(stood_on).to_be_focused()
    stood_on.press("ArrowRight")
    _says(viewer, "scale 6, seed 7 (preview)")
    front_end.page.screenshot(path=artefacts / "many_cells.png")


def test_every_cell_of_a_long_row_can_be_seen_and_clicked(front_end: FrontEnd, viewer: Locator) -> None:
    """The row goes on in the next line; the map goes along to the cell that is chosen."""
    front_end.page.evaluate(KNOWN_CELLS, MANY)
    small = viewer.locator(".rlg-map img")
    expect(small).to_have_count(MANY)
    assert min(small.evaluate_all("(images) => images.map(({offsetWidth}) => offsetWidth)")) >= 20
    viewer.get_by_role("slider", name="scale").press("End")
    _says(viewer, f"scale {MANY - 1}, seed 7 (preview)")
    expect(viewer.get_by_role("button", name=f"scale {MANY - 1}, seed 7", exact=True)).to_be_in_viewport()


# A table with long labels in the smallest node, with all that one can switch on.
CROWDED = """() => {
    const find = (kind) => app.graph.nodes.find(({type}) => type === kind);
    const loras = ["a", "b", "c", "d", "e"].map(name => `lora ${name.repeat(70)}`);
    const labels = loras.flatMap(lora => [0, 1, 2, 3].map(scale => `${lora}, scale ${scale}, seed 7`));
    const picture = document.createElement("canvas").toDataURL();
    const pictures = Object.fromEntries(labels.map((_, number) => [number, picture]));
    app.api.dispatchCustomEvent("rlg_cells", {node: String(find("RLGSweep").id), begins: true, labels, pictures});
    find("RLGGrid").setSize([330, 0]);
    find("RLGGrid").setSize([330, find("RLGGrid").computeSize()[1]]);
}"""


def test_nothing_lies_over_another_part_where_the_viewer_is_small(
    front_end: FrontEnd, viewer: Locator, artefacts: Path
) -> None:
    size = front_end.page.evaluate("() => [...app.graph.nodes.find(({type}) => type === 'RLGGrid').size]")
    front_end.page.evaluate(CROWDED)
    viewer.get_by_role("button", name="Compare").click()
    front_end.go_to("RLGGrid")
    front_end.page.screenshot(path=artefacts / "small_viewer.png")
    parts = ["figcaption", ".rlg-comparison", "[aria-label=scale]", "[aria-label=lora]", ".rlg-map", ".rlg-buttons"]
    boxes = [viewer.locator(part).bounding_box() for part in [".rlg-picture", *parts]]
    for upper, lower in itertools.pairwise(boxes):
        assert upper["y"] + upper["height"] <= lower["y"] + 1
    inside = viewer.bounding_box()
    assert boxes[-1]["y"] + boxes[-1]["height"] <= inside["y"] + inside["height"] + 1
    viewer.get_by_role("button", name="Compare").click()
    front_end.page.evaluate("(size) => app.graph.nodes.find(({type}) => type === 'RLGGrid').setSize(size)", size)


def _address(front_end: FrontEnd, url: str) -> str:
    return url if url.startswith("http") else front_end.server.address + url


def _values(front_end: FrontEnd, kind: str) -> dict[str, Any]:
    found = front_end.page.evaluate(
        """(type) => Object.fromEntries(
            app.graph.nodes.find(node => node.type === type)?.widgets.map(({name, value}) => [name, value]) ?? []
        )""",
        kind,
    )
    # Previews are widgets too, and come when they are there.
    return {name: value for name, value in found.items() if not name.startswith("$$")}


def test_a_cell_of_a_table_is_used(front_end: FrontEnd) -> None:
    """Up and down are the switch points, left and right the scales; what is used is sampled as the cell was."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": {"steps": 2, "scales": "1, 1.5, 2", "switch_percents": "0, 0.5"}})
    assert front_end.run()["status"]["status_str"] == "success"
    viewer = _viewer(front_end)
    picture = _picture(viewer)
    viewer.get_by_role("button", name=TABLE[0]).click()
    for key, label in (("Right", TABLE[1]), ("Down", TABLE[4]), ("Down", TABLE[4]), ("Right", TABLE[5])):
        picture.press(f"Arrow{key}")
        _says(viewer, label)
    viewer.get_by_role("slider", name="switch").press("ArrowLeft")
    _says(viewer, TABLE[2])
    viewer.get_by_role("button", name=TABLE[4]).click()
    cell = front_end.page.context.request.get(_address(front_end, _shown(viewer))).body()

    viewer.get_by_role("button", name="Use this scale").click()
    front_end.page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'RLGKSampler')")
    chosen = _values(front_end, "RLGCombinedGeneration")
    assert (chosen["switch_percent"], chosen["scale"]) == (0.5, 1.5)
    assert _values(front_end, "RLGKSampler")["seed"] == 42
    run = front_end.run()
    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    (file,) = [file for output in run["outputs"].values() for file in output["images"] if file["type"] == "output"][-1:]
    assert _largest_difference(front_end.view(file), cell) == 0

    front_end.go_to("RLGGrid")
    viewer.get_by_role("button", name=TABLE[2]).click()
    viewer.get_by_role("button", name="Use this scale").click()
    front_end.page.wait_for_function(
        "() => app.graph.nodes.filter(node => node.type === 'RLGCombinedGeneration').length === 1"
    )
    chosen = _values(front_end, "RLGCombinedGeneration")
    assert (chosen["switch_percent"], chosen["scale"]) == (0, 2)


def test_a_cell_of_axes_is_used_with_what_they_say(front_end: FrontEnd) -> None:
    """Its seed and the power of its ramp, so that it is sampled as the cell was."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": {"steps": 3, "scales": "1, 2"}})
    front_end.page.evaluate(ADD_AXES)
    front_end.fit_view()
    assert front_end.run()["status"]["status_str"] == "success" and front_end.problems() == []
    viewer = _viewer(front_end)
    viewer.get_by_role("button", name="power 3, scale 2, seed 43").click()
    cell = front_end.page.context.request.get(_address(front_end, _shown(viewer))).body()
    viewer.get_by_role("button", name="Use this scale").click()
    front_end.page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'RLGKSampler')")
    ramp = _values(front_end, "RLGRamp")
    assert [ramp[name] for name in ("start_scale", "end_scale", "curve", "power")] == [0, 2, "power", 3]
    assert _values(front_end, "RLGKSampler")["seed"] == 43
    run = front_end.run()
    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    (file,) = [file for output in run["outputs"].values() for file in output["images"] if file["type"] == "output"][-1:]
    # The sweep computed it in a batch of another size, which changes the last bits of a float.
    assert _largest_difference(front_end.view(file), cell) <= 1


def test_a_cell_of_loras_is_used_at_the_strength_of_their_axis(front_end: FrontEnd) -> None:
    """That is 1, whatever the loader had; and an axis that is bypassed says nothing."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGLoadModels": {"lora_strength": 0.5}})
    loras = front_end.page.evaluate(ADD_LORAS)
    assert len(loras) == 2
    front_end.fit_view()
    assert front_end.run()["status"]["status_str"] == "success" and front_end.problems() == []
    viewer = _viewer(front_end)
    label = f"lora {loras[1].removesuffix('.safetensors')}, scale 2, seed 42"
    viewer.get_by_role("button", name=label).click()
    cell = front_end.page.context.request.get(_address(front_end, _shown(viewer))).body()
    viewer.get_by_role("button", name="Use this scale").click()
    front_end.until(lambda: front_end.page.evaluate(SCALE_OF_SAMPLER) == 2, "there is no sampler")
    loader = _values(front_end, "RLGLoadModels")
    assert (loader["lora_name"], loader["lora_strength"]) == (loras[1], 1)
    assert _values(front_end, "RLGKSampler")["cfg"] == _values(front_end, "RLGSweep")["cfg"]
    run = front_end.run()
    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    # The sweep was run again too, with the loader's new settings, and its grid saved.
    saved = [file for output in run["outputs"].values() for file in output["images"] if file["type"] == "output"]
    (picture,) = [picture for picture in map(front_end.view, saved) if Image.open(io.BytesIO(picture)).size == (64, 64)]
    assert _largest_difference(picture, cell) <= 1


def test_what_was_used_is_one_step_of_undo(front_end: FrontEnd) -> None:
    """Ctrl+Z takes back that alone, and not the edit before it."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": 80 + front_end.vue_nodes}})
    front_end.note_change()
    assert front_end.run()["status"]["status_str"] == "success"
    before = front_end.page.evaluate("() => app.graph.nodes.length")
    viewer = _viewer(front_end)
    viewer.get_by_role("button", name="scale 2").click()
    viewer.get_by_role("button", name="Use this scale").click()
    front_end.until(lambda: front_end.page.evaluate(SCALE_OF_SAMPLER) == 2, "there is no sampler")
    front_end.command("Comfy.Undo")
    front_end.page.wait_for_function("(before) => app.graph.nodes.length === before", arg=before)
    assert _values(front_end, "RLGSweep")["scales"] == SMALL["RLGSweep"]["scales"]
    front_end.command("Comfy.Redo")
    front_end.until(lambda: front_end.page.evaluate(SCALE_OF_SAMPLER) == 2, "the sampler did not come back")
    front_end.close_everything()


def test_the_choice_outlasts_a_run_with_another_seed(front_end: FrontEnd) -> None:
    """And so does the cell that it is compared with."""
    front_end.drop(SWEEP)
    for seed in (90, 92):
        seed += front_end.vue_nodes
        front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": seed}})
        assert front_end.run()["status"]["status_str"] == "success"
        viewer = _viewer(front_end)
        if seed < 92:
            viewer.get_by_role("button", name="scale 2").click()
            viewer.get_by_role("button", name="Compare").click()
            viewer.get_by_role("combobox", name="Cell to compare with").select_option(f"scale 1, seed {seed}")
        _says(viewer, f"scale 1, seed {seed} | scale 2, seed {seed}")


def _run_without_samplers(front_end: FrontEnd) -> None:
    """The sweep alone: an RLG KSampler is muted meanwhile."""
    front_end.page.evaluate(
        "() => { for (const node of app.graph.nodes) if (node.type === 'RLGKSampler') node.mode = 2; }"
    )
    assert front_end.run()["status"]["status_str"] == "success"
    front_end.page.evaluate("() => { for (const node of app.graph.nodes) node.mode = 0; }")


def test_a_scale_that_another_node_makes_is_not_written_over(front_end: FrontEnd) -> None:
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": 70 + front_end.vue_nodes}})
    front_end.page.evaluate(ADD_SAMPLER)
    front_end.page.evaluate(CONNECT_TO_SAMPLER, ["PrimitiveFloat", "scale"])
    before = front_end.page.evaluate(SCALE_OF_SAMPLER)
    viewer = front_end.page.get_by_role("group", name="Cells of the sweep")
    _run_without_samplers(front_end)
    front_end.go_to("RLGGrid")
    viewer.get_by_role("button", name="scale 2").click()
    viewer.get_by_role("button", name="Use this scale").click()
    expect(front_end.page.get_by_text("comes from another node: set it there")).to_be_visible()
    assert front_end.page.evaluate(SCALE_OF_SAMPLER) == before
    front_end.close_everything()


def test_a_cell_that_is_refused_changes_nothing(front_end: FrontEnd) -> None:
    """Not the seed either, which comes from no other node."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"steps": 3, "scales": "1, 2"}})
    front_end.page.evaluate(ADD_AXES)
    front_end.page.evaluate(ADD_SAMPLER)
    front_end.page.evaluate(CONNECT_TO_SAMPLER, ["RLGRamp", "schedule"])
    front_end.page.evaluate(
        """() => {
            const ramp = app.graph.nodes.find(({type}) => type === "RLGRamp");
            const number = LiteGraph.createNode("PrimitiveFloat");
            app.graph.add(number);
            number.connect(0, ramp, ramp.inputs.findIndex(({name}) => name === "power"));
        }"""
    )
    before = _values(front_end, "RLGKSampler"), _values(front_end, "RLGRamp")
    _run_without_samplers(front_end)
    front_end.go_to("RLGGrid")
    viewer = front_end.page.get_by_role("group", name="Cells of the sweep")
    viewer.get_by_role("button", name="power 3, scale 2, seed 43").click()
    viewer.get_by_role("button", name="Use this scale").click()
    expect(front_end.page.get_by_text("power of RLG Ramp")).to_be_visible()
    assert (_values(front_end, "RLGKSampler"), _values(front_end, "RLGRamp")) == before
    front_end.close_everything()


# The best of a sweep, and two samplers, the first of which is of another tuned model.
PICK_BEST = """() => {
    const find = (kind) => app.graph.nodes.find(({type}) => type === kind);
    const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    const connect = (from, output, to, input) => from.connect(
        from.outputs.findIndex(({name}) => name === output), to, to.inputs.findIndex(({name}) => name === input));
    const [sweep, decode, grid, loader] = ["RLGSweep", "VAEDecode", "RLGGrid", "RLGLoadModels"].map(find);
    const [reward, score, pick] = ["RLGLoadReward", "RLGScore", "RLGPickBest"].map(add);
    for (const node of [reward, score, pick]) node.pos = [decode.pos[0], decode.pos[1] + 600];
    const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value; };
    set(reward, "name", "jpeg_compressibility");
    set(pick, "count", 3);
    connect(reward, "reward", score, "reward");
    decode.connect(0, score, score.inputs.findIndex(({name}) => name === "images"));
    set(score, "prompt", "x");
    connect(score, "scores", pick, "scores");
    decode.connect(0, pick, pick.inputs.findIndex(({name}) => name === "images"));
    connect(sweep, "labels", pick, "labels");
    const reroute = add("Reroute");
    pick.connect(pick.outputs.findIndex(({name}) => name === "labels"), reroute, 0);
    reroute.connect(0, grid, grid.inputs.findIndex(({name}) => name === "labels"));
    pick.connect(0, grid, grid.inputs.findIndex(({name}) => name === "images"));
    const other = add("RLGLoadLora");
    connect(loader, "base", other, "model");
    return [[other, "MODEL"], [loader, "tuned"]].map(([from, output]) => {
        const sampler = add("RLGKSampler");
        connect(from, output, sampler, "tuned");
        sampler.mode = 2;
        return sampler.id;
    });
}"""


def test_a_picked_cell_goes_to_the_sampler_of_its_own_tuned_model(front_end: FrontEnd) -> None:
    """Its labels come by RLG Pick Best, and through a reroute."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": 110 + front_end.vue_nodes}})
    samplers = front_end.page.evaluate(PICK_BEST)
    assert front_end.run()["status"]["status_str"] == "success"
    scales = """(ids) => ids.map(id => app.graph.getNodeById(id).widgets.find(({name}) => name === "scale").value)"""
    before = front_end.page.evaluate(scales, samplers)
    front_end.page.evaluate("() => { for (const node of app.graph.nodes) node.mode = 0; }")
    viewer = _viewer(front_end)
    viewer.get_by_role("button", name=re.compile("scale 2, ")).click()
    viewer.get_by_role("button", name="Use this scale").click()
    front_end.until(
        lambda: front_end.page.evaluate(scales, samplers) == [before[0], 2], "the sampler did not get the scale"
    )
    front_end.close_everything()


def test_a_schedule_makes_way_for_a_scale_that_was_at_every_step(front_end: FrontEnd) -> None:
    """Else the sampler would not draw the cell's picture."""
    front_end.drop(SWEEP)
    front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": 95 + front_end.vue_nodes}})
    assert front_end.run()["status"]["status_str"] == "success"
    front_end.page.evaluate(ADD_SAMPLER)
    front_end.page.evaluate(CONNECT_TO_SAMPLER, ["RLGScale", "schedule"])
    assert front_end.page.evaluate(SCHEDULE_OF_SAMPLER) is not None
    viewer = _viewer(front_end)
    viewer.get_by_role("button", name="scale 2").click()
    viewer.get_by_role("button", name="Use this scale").click()
    front_end.until(lambda: front_end.page.evaluate(SCALE_OF_SAMPLER) == 2, "the sampler did not get the scale")
    assert front_end.page.evaluate(SCHEDULE_OF_SAMPLER) is None
    front_end.close_everything()


ADD_SAMPLER = """() => {
    const sampler = LiteGraph.createNode("RLGKSampler");
    app.graph.add(sampler);
    const loader = app.graph.nodes.find(({type}) => type === "RLGLoadModels");
    loader.connect(loader.outputs.findIndex(({name}) => name === "tuned"), sampler, 1);
    return sampler.inputs[1].name;
}"""
CONNECT_TO_SAMPLER = """([type, input]) => {
    const sampler = app.graph.nodes.find(({type}) => type === "RLGKSampler");
    const made = LiteGraph.createNode(type);
    app.graph.add(made);
    made.connect(0, sampler, sampler.inputs.findIndex(({name}) => name === input));
}"""
SCALE_OF_SAMPLER = """() => app.graph.nodes.find(({type}) => type === "RLGKSampler")
    ?.widgets.find(({name}) => name === "scale").value"""


SCHEDULE_OF_SAMPLER = """() => app.graph.nodes.find(({type}) => type === "RLGKSampler")
    .inputs.find(({name}) => name === "schedule").link"""


@pytest.mark.parametrize("kind", ["RLGSweep", "RLGGrid"])
def test_the_sampler_is_found_across_the_border_of_a_subgraph(front_end: FrontEnd, kind: str) -> None:
    """Without one, a sentence says so, and nothing is added."""
    front_end.drop(SWEEP)
    seed = {"RLGSweep": 60, "RLGGrid": 61}[kind] + 100 * front_end.vue_nodes
    front_end.set_widgets(SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": seed}})
    subgraph = front_end.into_a_subgraph(kind)
    before = front_end.page.evaluate("() => app.graph.nodes.length")
    assert front_end.run()["status"]["status_str"] == "success" and front_end.problems() == []
    if kind == "RLGGrid":
        front_end.enter(subgraph)
    else:
        front_end.go_to("RLGGrid")
    viewer = front_end.page.get_by_role("group", name="Cells of the sweep")
    viewer.get_by_role("button", name=f"scale 2, seed {seed}").click()
    use = viewer.get_by_role("button", name="Use this scale")
    if kind == "RLGSweep":
        use.click()
        expect(front_end.page.get_by_text("The sweep is in a subgraph")).to_be_visible()
        assert front_end.page.evaluate("() => app.graph.nodes.length") == before
        front_end.close_everything()
    assert front_end.page.evaluate(ADD_SAMPLER) == "tuned"
    use.click()
    front_end.until(lambda: front_end.page.evaluate(SCALE_OF_SAMPLER) == 2, "the sampler did not get the scale")
    front_end.enter(None)


def _largest_difference(picture: bytes, cell: bytes) -> int:
    """Of a colour, 0 … 255."""
    one, other = (np.array(Image.open(io.BytesIO(file)).convert("RGB")).astype(int) for file in (picture, cell))
    assert one.shape == other.shape
    return abs(one - other).max()


def test_grid_and_plot_need_no_save_image_and_are_filled_again_after_f5(front_end: FrontEnd) -> None:
    """A run that computes nothing anew brings back what was seen."""

    def load_and_run() -> dict[str, Any]:
        front_end.drop(CURVE)
        front_end.page.evaluate(
            "() => app.graph.nodes.filter(({type}) => type === 'SaveImage').forEach(node => app.graph.remove(node))"
        )
        front_end.set_widgets(SMALL | {"RLGLoadReward": {"name": "jpeg_compressibility", "file": "auto"}})
        run = front_end.run()
        assert run["status"]["status_str"] == "success" and front_end.problems() == []
        return run

    load_and_run()
    shown = _shown(_viewer(front_end))
    front_end.open()
    run = load_and_run()
    (cached,) = [data["nodes"] for event, data in run["status"]["messages"] if event == "execution_cached"]
    assert set(cached) == set(run["prompt"][2])
    assert _picture_of(_shown(_viewer(front_end))) == _picture_of(shown)
    front_end.go_to("RLGPlot")
    (plot,) = [node["id"] for node in front_end.graph()["nodes"] if node["type"] == "RLGPlot"]
    assert front_end.wait_for_pictures(plot, 1)


def _picture_of(url: str) -> str:
    """Without what only tells one address from another."""
    return parse_qs(urlsplit(url).query)["filename"][0]


def test_without_our_parts_the_host_shows_the_pictures(browser: Browser, server: Server, front_end: FrontEnd) -> None:
    """As where a user has switched them off in the settings."""
    settings = f"{server.address}/api/settings"
    request = front_end.page.context.request
    expect(request.post(settings, data={"Comfy.Extension.Disabled": EXTENSIONS})).to_be_ok()
    try:
        bare = FrontEnd(browser, server, front_end.vue_nodes)
        bare.drop(SWEEP)
        bare.set_widgets(
            SMALL | {"RLGSweep": SMALL["RLGSweep"] | {"seed": 7 + front_end.vue_nodes}}
        )  # else the server would not run it again
        assert bare.run()["status"]["status_str"] == "success"
        (grid,) = [node["id"] for node in bare.graph()["nodes"] if node["type"] == "RLGGrid"]
        assert bare.wait_for_pictures(grid, 1)[0] == [64, 64]
        assert bare.page.locator(".rlg-part").count() == 0
        bare.page.context.close()
    finally:
        expect(request.post(settings, data={"Comfy.Extension.Disabled": []})).to_be_ok()
