"""The documentation's pictures of ComfyUI on the screen, drawn by whoever runs this.

    python dev.py test tests/browser/test_pictures_of_docs.py --pictures

writes them to `docs/images`; without the option they are left in `output/browser`. Both are of the demo's pair.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS
from demo.graphs import CFG, STEPS
from demo.run import PROMPT, changed
from demo.scenes import SIDE
from demo.trained_pair import CHECKPOINT, LORAS
from packed import REPO

pytestmark = pytest.mark.slow

(STARTER,) = [path for path in WORKFLOWS if path.stem == "RLG 01 - Text to image"]
(SWEEP,) = [path for path in WORKFLOWS if path.stem == "RLG 02 - Scale sweep"]

STARTER_SEED = 3
STARTER_SCREEN = {"width": 1280, "height": 725}
STARTER_PLACE = {"left": 72, "top": 100, "right": 1268, "bottom": 715}
"""Between the front end's own bars, in pixels."""

SLIDER_MODELS = {"ckpt_name": CHECKPOINT, "lora_name": LORAS["text"]}
SLIDER_PROMPT = 'a sign that says "C A N"'
"""A held-out one; the second that the base draws wrong, as `demo.figures` chooses them."""
SLIDER_SEED = 1002
SLIDER_SCALES = [step / 4 for step in range(13)]
SLIDER_ZOOM = 1.25
NODE_SIZE, MARGIN = [480, 530], 3
SECONDS, SECONDS_AT_ENDS = 10.0, 0.9
QUALITY, MOST_BYTES, MOST_WIDTH = 92, 1_500_000, 800

FILL = """({left, top, right, bottom}) => {
    const boxes = app.graph.groups.map(({pos: [x, y], size: [width, height]}) => [x, y, x + width, y + height]);
    const [x, y] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])));
    const [far, low] = [2, 3].map(i => Math.max(...boxes.map(box => box[i])));
    const {ds} = app.canvas;
    ds.scale = Math.min((right - left) / (far - x), (bottom - top) / (low - y));
    ds.offset = [left / ds.scale - x, top / ds.scale - y];
    app.canvas.setDirty(true, true);
}"""
# A node is placed by the graph; where that is on the page, the canvas says.
GRID_ON_PAGE = """() => {
    const {canvas, ds} = app.canvas, page = canvas.getBoundingClientRect();
    const [x, y, width, height] = app.graph.nodes.find(({type}) => type === "RLGGrid").boundingRect;
    return {x: page.x + (x + ds.offset[0]) * ds.scale, y: page.y + (y + ds.offset[1]) * ds.scale,
            width: width * ds.scale, height: height * ds.scale};
}"""
RESIZE_GRID = """(size) => app.graph.nodes.find(({type}) => type === "RLGGrid").setSize(size)"""


@pytest.fixture
def folder(request: pytest.FixtureRequest, artefacts: Path) -> Path:
    """Where the pictures go. Of a host with two renderers the newer one, which comes second, has the last word."""
    return REPO / "docs" / "images" if request.config.getoption("--pictures") else artefacts


def test_starter(front_end: FrontEnd, tmp_path: Path, folder: Path) -> None:
    """The workflow of the README, after its run."""
    _run(front_end, STARTER, tmp_path, PROMPT, {"RLGKSampler": {"seed": STARTER_SEED, "steps": STEPS, "cfg": CFG}})
    (saver,) = [node["id"] for node in front_end.graph()["nodes"] if node["type"] == "SaveImage"]
    assert front_end.wait_for_pictures(saver, 1) == [[SIDE, SIDE]]
    page = front_end.page
    before = page.viewport_size
    page.set_viewport_size(STARTER_SCREEN)
    front_end.fit_view()
    front_end.place_view(FILL, STARTER_PLACE)
    expect(page.get_by_text(re.compile("job completed", re.IGNORECASE))).to_have_count(0)  # it fades
    page.screenshot(path=folder / "starter.png")
    page.set_viewport_size(before)


def test_slider(front_end: FrontEnd, tmp_path: Path, folder: Path) -> None:
    """A sweep in the viewer of RLG Grid: the slider goes from the first scale to the last and back."""
    scales = ", ".join(f"{scale:g}" for scale in SLIDER_SCALES)
    sampling = {"seed": SLIDER_SEED, "steps": STEPS, "cfg": CFG, "scales": scales}
    _run(front_end, SWEEP, tmp_path, SLIDER_PROMPT, {"RLGSweep": sampling, "RLGLoadModels": SLIDER_MODELS})
    frames = _frames(front_end)
    path = folder / "slider.webp"
    there_and_back = [*frames, *frames[-2:0:-1]]
    between = (SECONDS - 2 * SECONDS_AT_ENDS) / (len(there_and_back) - 2)
    seconds = [SECONDS_AT_ENDS if frame in (frames[0], frames[-1]) else between for frame in there_and_back]
    there_and_back[0].save(
        path, save_all=True, append_images=there_and_back[1:], duration=[round(1000 * s) for s in seconds], loop=0,
        quality=QUALITY, method=6,
    )  # fmt: skip
    assert path.stat().st_size <= MOST_BYTES and frames[0].width <= MOST_WIDTH


def _run(front_end: FrontEnd, path: Path, folder: Path, prompt: str, sampling: dict[str, dict[str, Any]]) -> None:
    """A bundled workflow with the demo's prompt, size and steps, dropped under its own name and run."""
    object_info = front_end.page.context.request.get(f"{front_end.server.address}/api/object_info").json()
    ours = {"Positive Prompt": {"text": prompt}, "EmptySD3LatentImage": {"width": SIDE, "height": SIDE}}
    workflow = changed(json.loads(path.read_text(encoding="utf-8")), object_info, ours | sampling)
    (folder / path.name).write_text(json.dumps(workflow), encoding="utf-8")
    front_end.drop(folder / path.name)
    assert front_end.run()["status"]["status_str"] == "success" and front_end.problems() == []


def _frames(front_end: FrontEnd) -> list[Image.Image]:
    """RLG Grid while its slider is drawn to each scale in turn, each seen with its label and its picture."""
    page = front_end.page
    page.evaluate(RESIZE_GRID, NODE_SIZE)
    front_end.go_to("RLGGrid", SLIDER_ZOOM)
    viewer = page.get_by_role("group", name="Cells of the sweep")
    picture = viewer.locator(".rlg-picture img:not(.rlg-under)")
    slider = viewer.get_by_role("slider", name="scale").bounding_box()
    thumb, middle = slider["height"], slider["y"] + slider["height"] / 2
    node = page.evaluate(GRID_ON_PAGE)
    clip = {
        "x": node["x"] - MARGIN, "y": node["y"] - MARGIN,
        "width": node["width"] + 2 * MARGIN, "height": node["height"] + 2 * MARGIN,
    }  # fmt: skip
    frames, shown = [], set()
    for number, scale in enumerate(SLIDER_SCALES):
        part = number / (len(SLIDER_SCALES) - 1)
        page.mouse.move(slider["x"] + thumb / 2 + part * (slider["width"] - thumb), middle)
        page.mouse.down()  # once it is down, this changes nothing
        expect(viewer.locator("figcaption")).to_have_text(f"scale {scale:g}, seed {SLIDER_SEED}")
        expect(picture).to_have_js_property("naturalWidth", SIDE)
        shown.add(picture.get_attribute("src"))
        frames.append(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))
    page.mouse.up()
    assert len(shown) == len(SLIDER_SCALES)
    return frames
