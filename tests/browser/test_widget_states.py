"""Nodes on the canvas say what is so: what has no effect cannot be set, and sentences of a run are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS, is_ours
from packed import REPO

pytestmark = pytest.mark.slow

(TWO,) = [path for path in WORKFLOWS if path.stem == "RLG 06 - Two rewards"]
FROZEN = REPO / "tests" / "frozen" / "v0.1.0"
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
    front_end.load(saved)
    assert _widget(front_end, kind, "scale") == taken
    front_end.page.evaluate(
        "(type) => { const node = app.graph.nodes.find(node => node.type === type);"
        "node.disconnectInput(node.inputs.findIndex(input => input.name === 'schedule')); }",
        kind,
    )
    assert _widget(front_end, kind, "scale") == free


def test_scale_is_free_while_its_schedule_is_bypassed(front_end: FrontEnd) -> None:
    """Then it is what is sampled."""
    front_end.command("Comfy.NewBlankWorkflow")  # a page just opened has none that it would watch
    front_end.page.wait_for_function("() => !app.graph.nodes.length && !app.extensionManager.spinner")
    front_end.add_alone("RLGKSampler")
    free = _widget(front_end, "RLGKSampler", "scale")
    front_end.page.evaluate(CONNECT_SCHEDULE, "RLGKSampler")
    assert _widget(front_end, "RLGKSampler", "scale")["disabled"]
    front_end.page.evaluate("() => app.canvas.selectNode(app.graph.nodes.find(({type}) => type === 'RLGRamp'))")
    for disabled in (False, True):
        front_end.command("Comfy.Canvas.ToggleSelectedNodes.Bypass")
        front_end.note_change()
        assert _widget(front_end, "RLGKSampler", "scale")["disabled"] == disabled
        if not disabled:
            assert _widget(front_end, "RLGKSampler", "scale") == free


def test_a_loaded_workflow_says_what_its_bypassed_schedule_does(front_end: FrontEnd) -> None:
    """Nothing. While the sampler is loaded, the schedule behind it in the file is not yet."""
    front_end.add_alone("RLGKSampler")
    free = _widget(front_end, "RLGKSampler", "scale")
    front_end.page.evaluate(CONNECT_SCHEDULE, "RLGKSampler")
    front_end.page.evaluate("() => { app.graph.nodes.find(({type}) => type === 'RLGRamp').mode = 4; }")
    front_end.load(front_end.graph())
    assert _widget(front_end, "RLGKSampler", "scale") == free


def test_a_loaded_workflow_says_what_a_schedule_around_a_subgraph_does(front_end: FrontEnd) -> None:
    front_end.add_alone("RLGKSampler")
    front_end.page.evaluate(CONNECT_SCHEDULE, "RLGKSampler")
    holder = front_end.into_a_subgraph("RLGKSampler")
    front_end.load(front_end.graph())
    scale = front_end.page.evaluate(
        """(type) => {
            const {subgraph} = app.graph.nodes.find(node => node.type === type);
            const sampler = subgraph.nodes.find(({type}) => type === "RLGKSampler");
            const {disabled, label} = sampler.widgets.find(({name}) => name === "scale");
            return {disabled: Boolean(disabled), label};
        }""",
        holder,
    )
    assert scale == {"disabled": True, "label": "scale: from schedule"}


def test_power_is_there_for_the_curve_that_has_one(front_end: FrontEnd) -> None:
    front_end.add_alone("RLGRamp")
    assert _widget(front_end, "RLGRamp", "power")["hidden"]
    front_end.set_widgets({"RLGRamp": {"curve": "power"}})
    assert not _widget(front_end, "RLGRamp", "power")["hidden"]
    saved = front_end.graph()
    assert saved["nodes"][0]["widgets_values"] == [0, 1, "power", 2]
    front_end.load(saved)
    assert not _widget(front_end, "RLGRamp", "power")["hidden"]


@pytest.mark.parametrize("kind", ["RLGKSampler", "RLGSweep", "RLGBranch"])
def test_a_new_node_keeps_its_seed_and_a_saved_one_its_setting(front_end: FrontEnd, kind: str) -> None:
    front_end.add_alone(kind)
    assert _widget(front_end, kind, "control_after_generate")["value"] == "fixed"
    front_end.set_widgets({kind: {"control_after_generate": "increment"}})
    front_end.load(front_end.graph())
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
    front_end.close_everything()
    assert any("'0.5' is not position:scale" in complaint for complaint in front_end.new_complaints())


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


WIDGETS = "(type) => app.graph.nodes.find(node => node.type === type).widgets.map(({name}) => name)"


@pytest.mark.parametrize(
    ("kind", "below", "saved"),
    [
        (
            "RLGKSampler",
            ["scale", "tuned_cfg"],
            [0, "fixed", 28, 4.5, "euler", "normal", 1, 1.6, "auto", 0],
        ),
        ("RLGGuider", ["scale", "tuned_cfg"], [4.5, 1.6, "auto", 0]),
        (
            "RLGSweep",
            ["scales", "switch_percents", "tuned_cfg"],
            [0, "fixed", 28, 4.5, "euler", "normal", 1, "0, 0.5, 1, 1.6, 2, 3", "", 0],
        ),
    ],
)
def test_the_scale_stands_below_cfg_and_saved_values_keep_their_places(
    front_end: FrontEnd, kind: str, below: list[str], saved: list[Any]
) -> None:
    front_end.add_alone(kind)
    saved = list(saved)
    for _ in range(2):
        names = front_end.page.evaluate(WIDGETS, kind)
        at = names.index("cfg") + 1
        assert names[at : at + len(below)] == below
        graph = front_end.graph()
        assert graph["nodes"][0]["widgets_values"] == saved
        saved[3 if len(saved) > 4 else 0] = 7.5
        graph["nodes"][0]["widgets_values"] = saved
        graph["nodes"][0]["id"] += 100  # the newer front end keeps values of widgets by the node's id
        graph["last_node_id"] = graph["nodes"][0]["id"]
        front_end.load(graph)
    assert _widget(front_end, kind, "cfg")["value"] == 7.5


def test_a_workflow_of_the_first_release_with_a_linked_tuned_cfg(front_end: FrontEnd) -> None:
    """Its values are where they were, and the Float still says the tuned model's CFG."""
    workflow, frozen = (
        json.loads((FROZEN / name).read_text(encoding="utf-8"), object_hook=_without_nulls)
        for name in ("annealed_guidance.json", "annealed_guidance.prompt.json")
    )
    front_end.load(workflow)
    prompt = front_end.page.evaluate("async () => (await app.graphToPrompt()).output")
    samplers = [node for node, entry in frozen.items() if entry["class_type"] == "RLGKSampler"]
    assert samplers
    for node in samplers:
        assert isinstance(prompt[node]["inputs"]["tuned_cfg"], list)
        assert {name: prompt[node]["inputs"][name] for name in frozen[node]["inputs"]} == frozen[node]["inputs"]
    front_end.close_everything()


def _without_nulls(entry: dict[str, Any]) -> dict[str, Any]:
    """Newer front ends read nothing that is null where they once wrote it."""
    return {name: value for name, value in entry.items() if value is not None}


def test_an_adapter_has_one_name_and_its_old_one_still_works(front_end: FrontEnd) -> None:
    """A workflow that names the file in the adapter's folder finds the folder."""
    front_end.add_alone("RLGLoadLora")
    values = front_end.page.evaluate(
        "() => app.graph.nodes[0].widgets.find(({name}) => name === 'lora_name').options.values"
    )
    assert values and not [value for value in values if value.endswith("adapter_model.safetensors")]
    graph = front_end.graph()
    graph["nodes"][0]["widgets_values"][0] = f"{values[-1]}/adapter_model.safetensors"
    front_end.load(graph)
    assert _widget(front_end, "RLGLoadLora", "lora_name")["value"] == values[-1]
    assert front_end.problems() == []


def test_a_file_of_prompts_is_uploaded(front_end: FrontEnd, tmp_path: Path, artefacts: Path) -> None:
    """Where there is none, the node says so in place of 'undefined'."""
    front_end.add_alone("RLGLoadPrompts")
    front_end.page.evaluate(
        """() => {
            const [prompts] = app.graph.nodes, any = LiteGraph.createNode("PreviewAny");
            any.pos = [600, 100];
            app.graph.add(any);
            prompts.connect(0, any, 0);
        }"""
    )
    part = front_end.page.locator(".rlg-upload")
    if not front_end.vue_nodes:  # the folder of a new server; later there is what was uploaded here
        expect(part.get_by_text("There is no file of prompts yet")).to_be_visible()
        assert _widget(front_end, "RLGLoadPrompts", "file")["value"] == ""
        front_end.page.screenshot(path=artefacts / "no_prompt_files.png")
        other = {"name": "put there.txt", "mimeType": "text/plain", "buffer": b"a bird\n"}
        post = front_end.page.context.request.post
        expect(post(f"{front_end.server.address}/api/upload/image", multipart={"image": other})).to_be_ok()
        front_end.page.evaluate("() => app.refreshComboInNodes()")  # as R does
        expect(part.get_by_text("There is no file of prompts yet")).to_be_hidden()
    file = tmp_path / f"prompts {front_end.vue_nodes}.txt"
    file.write_text("a cat\na dog\n", encoding="utf-8")
    part.locator("input").set_input_files(file)
    front_end.until(
        lambda: _widget(front_end, "RLGLoadPrompts", "file")["value"] == file.name, "the file was not chosen"
    )
    expect(part.get_by_text("There is no file of prompts yet")).to_be_hidden()
    run = front_end.run()
    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    assert "a dog" in str(run["outputs"])
    assert front_end.graph()["nodes"][0]["widgets_values"] == [file.name, "prompt", 0, 0, 0]


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


def test_all_warnings_of_a_run_are_seen(front_end: FrontEnd) -> None:
    """As the server sends them: RLG Sweep warns of each switch point that no step reaches."""
    front_end.add_alone("RLGSweep")
    for sentence in ("the first one", "the second one"):
        front_end.page.evaluate(
            "(sentence) => app.api.dispatchCustomEvent('rlg_warning', {node: String(app.graph.nodes[0].id), sentence})",
            sentence,
        )
    for sentence in ("the first one", "the second one"):
        expect(front_end.page.locator(".rlg-warnings").get_by_text(sentence)).to_be_visible()


def test_a_warning_leaves_a_node_as_wide_as_it_is(front_end: FrontEnd) -> None:
    """Also where its title is longer, which the host would make it wide enough for."""
    front_end.add_alone("RLGSweep")
    sizes = front_end.page.evaluate(
        """() => {
            const [node] = app.graph.nodes;
            node.title = "A title that somebody wrote who wanted to say what all of this is good for";
            const before = node.size[0];
            const sentence = "no step takes this scale";
            app.api.dispatchCustomEvent("rlg_warning", {node: String(node.id), sentence});
            return [before, node.size[0]];
        }"""
    )
    expect(front_end.page.locator(".rlg-warnings")).to_be_visible()
    assert sizes[0] == sizes[1]


def test_many_warnings_do_not_make_a_node_taller_than_the_screen(front_end: FrontEnd) -> None:
    """The last of them is scrolled to."""
    front_end.add_alone("RLGSweep")
    front_end.page.evaluate(
        """() => {
            const node = String(app.graph.nodes[0].id);
            for (let number = 0; number < 100; number++) {
                const sentence = `no step takes the scale of cell ${number}`;
                app.api.dispatchCustomEvent("rlg_warning", {node, sentence});
            }
        }"""
    )
    shown = front_end.page.locator(".rlg-warnings")
    expect(shown.locator("p")).to_have_count(100)
    assert shown.bounding_box()["height"] < 250
    last = shown.get_by_text("of cell 99")
    last.scroll_into_view_if_needed()
    expect(last).to_be_in_viewport()


def test_a_warning_of_another_workflow_is_in_none_of_the_nodes_of_this_one(front_end: FrontEnd) -> None:
    """They have the same ids. It is a message of the page."""
    front_end.add_alone("RLGSweep")
    sent = "{node: String(app.graph.nodes[0].id), sentence: 'of another tab', workflow: 'another'}"
    front_end.page.evaluate(f"() => app.api.dispatchCustomEvent('rlg_warning', {sent})")
    expect(front_end.page.locator(".p-toast-message").get_by_text("of another tab")).to_be_visible()
    expect(front_end.page.locator(".rlg-warnings")).to_have_count(0)
    front_end.close_everything()
