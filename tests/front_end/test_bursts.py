"""Known cells of a sweep come to the page all at once, one message each: what that costs grows with them, no faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from javascript import needs_node, on_a_page

pytestmark = needs_node

# A sweep that leads to a grid, and how to tell that grid what the server would.
HOST = {
    "app.js": """
        export const extensions = {};
        export const app = {
          nodeOutputs: {},
          registerExtension: (extension) => (extensions[extension.name] = extension),
        };
    """,
    "api.js": """
        export const heard = {};
        export const api = {
          addEventListener: (event, then) => (heard[event] = then),
          apiURL: (path) => path,
        };
    """,
}
ANSWER = """
import { frames, made, pass, timers } from "./page.js";
import { app, extensions } from "../../scripts/app.js";
import { heard } from "../../scripts/api.js";
await import("./sweep_viewer.js");
const viewer = extensions["RLG.SweepViewer"];
viewer.setup();

function answer({ count, after, executed }) {
  const graph = {
    isRootGraph: true,
    setDirtyCanvas() {},
    getNodeById: (id) => graph.nodes.find((node) => String(node.id) === String(id)),
    getLink: () => ({ target_id: 2, target_slot: 0 }),
  };
  let part;
  const grid = {
    id: 2, graph, comfyClass: "RLGGrid", inputs: [{ name: "labels" }],
    addDOMWidget: (name, type, element) => (part = Object.assign({ element })),
  };
  graph.nodes = [{ id: 1, graph, outputs: [{ links: [1] }] }, grid];
  app.graph = graph;
  viewer.nodeCreated(grid);
  for (const tag in made) delete made[tag];
  const labels = Array.from({ length: count }, (_, index) => `scale ${index}, seed 42`);
  const queue = { frames, timers }[after.queue];
  labels.forEach((_, index) => {
    heard.rlg_cells({ detail: { node: "1", begins: !index, labels, pictures: { [index]: `data:${index}` } } });
    if ((index + 1) % after.messages === 0) pass(queue);
  });
  if (executed) {
    const images = labels.map((_, index) => ({ filename: `${index}.png`, subfolder: "", type: "temp" }));
    app.nodeOutputs[2] = { images, labels };
    viewer.onNodeOutputsUpdated();
    delete app.nodeOutputs[2];
  }
  pass(queue);
  const [figure] = part.element.all("figure");
  const sources = figure.all("button").map((button) => button.all("img")[0]?.getAttribute("src"));
  for (const left of [frames, timers]) left.length = 0;
  return { sources, made };
}
"""


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    with on_a_page(Path(__file__).with_name("small_page.js"), HOST, ANSWER) as asked:
        yield lambda **question: asked(question)


@pytest.mark.parametrize("messages", [1, 7, 1000], ids=lambda messages: f"a frame after {messages} messages")
def test_pictures_are_made_once_for_each_cell(ask, messages: int) -> None:
    """Whether each is seen before the next comes, or all come at once."""
    count = 200
    answer = ask(count=count, after={"queue": "frames", "messages": messages}, executed=False)
    assert answer["sources"] == [f"data:{index}" for index in range(count)]
    made = answer["made"]
    assert made["Image"] + made["img"] <= 2 * count + 10
    assert sum(made.values()) <= 5 * count


def test_a_page_that_is_hidden_shows_all_cells_too(ask) -> None:
    """There are no frames there, only timers."""
    answer = ask(count=12, after={"queue": "timers", "messages": 5}, executed=False)
    assert answer["sources"] == [f"data:{index}" for index in range(12)]


def test_exact_pictures_are_not_replaced_by_previews_that_came_before(ask) -> None:
    answer = ask(count=12, after={"queue": "frames", "messages": 5}, executed=True)
    assert answer["sources"] == [f"/view?filename={index}.png&subfolder=&type=temp" for index in range(12)]
