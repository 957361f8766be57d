"""ComfyUI's front end in a headless browser, used as a person does: drop a file, press Run, look."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, Playwright, expect

from browser.server import Server

T = TypeVar("T")

SCREEN = {"width": 1600, "height": 1000}
LARGE_SCREEN = {"width": 2560, "height": 1440}
"""For screenshots: a whole workflow on it can be read."""
LIMIT = 120.0
"""Seconds that anything may take. A quiet machine needs a few; a busy one has its own idea of time."""
expect.set_options(timeout=LIMIT * 1000)

# No sandbox, because it does not work for root and in containers, and all pages are our own server's. The others keep
# the browser from calling home.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

NO_BROWSER = (
    "no browser to test with: run `playwright install chromium` in the environment of the tests, or install Chromium, "
    "Google Chrome or Microsoft Edge"
)

# No greeting for newcomers, no tabs of the last test, no more drawing than a CPU can do beside its work and no numbers
# about that, and texts also on nodes that are small.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MaximumFps": 10,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
NO_ADVERTISEMENT = "localStorage.setItem('vueNodesBannerDismissed', 'true')"

RED = (
    "[class*='node-stroke-error']:visible, .ring-error:visible, [data-testid=error-overlay]:visible, "
    ".p-toast-message-error:visible, .p-toast-message-warn:visible, .p-dialog:visible, [role=dialog]:visible"
)
"""Error frames of nodes that are HTML, red widgets and sockets, and whatever the front end puts over the canvas."""

# Nodes that are drawn on the canvas leave nothing to find in the page, so that the graph is asked as well.
PROBLEMS = """() => {
    const found = [];
    for (const node of app.graph.nodes) {
        const name = `node ${node.id} (${node.type})`;
        if (!(node.type in LiteGraph.registered_node_types)) found.push(`${name}: missing`);
        if (node.has_errors) found.push(`${name}: has errors`);
        for (const input of node.inputs ?? []) if (input.hasErrors) found.push(`${name}: ${input.name} is red`);
        for (const widget of node.widgets ?? []) {
            let choices = widget.type === "combo" ? widget.options.values : undefined;
            if (typeof choices === "function") choices = choices(widget, node);
            if (choices instanceof Array && !choices.includes(widget.value))
                found.push(`${name}: ${widget.name} has no choice ${widget.value}`);
        }
    }
    for (const [id, errors] of Object.entries(app.lastNodeErrors ?? {}))
        found.push(`node ${id}: ${JSON.stringify(errors)}`);
    if (app.lastExecutionError) found.push(app.lastExecutionError.exception_message);
    return found;
}"""

SET_WIDGETS = """(changes) => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? []) {
            const value = changes[node.type]?.[widget.name];
            if (value === undefined) continue;
            widget.value = value;
            widget.callback?.(value);
        }
}"""

ALL_IN_SIGHT = """() => {
    const {canvas, ds} = app.canvas;
    const [right, bottom] = [canvas.width, canvas.height].map(size => size / window.devicePixelRatio + 1);
    return app.graph.nodes.every(node => {
        const [x, y, width, height] = node.boundingRect;
        const [left, top] = [(x + ds.offset[0]) * ds.scale, (y + ds.offset[1]) * ds.scale];
        return left > -1 && top > -1 && left + width * ds.scale < right && top + height * ds.scale < bottom;
    });
}"""

# In a graph with an id of its own: the newer front end keeps the values of widgets by it and by their node's number,
# also of what is gone, and forgets them only where there is one.
ADD = """(type) => {
    app.graph.clear();
    app.graph.id = crypto.randomUUID();
    const node = LiteGraph.createNode(type);
    node.pos = [100, 100];
    app.graph.add(node);
}"""

INTO_A_SUBGRAPH = """async (type) => {
    app.canvas.deselectAll();
    app.canvas.select(app.graph.nodes.find(node => node.type === type));
    await app.extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph");
    return [...app.canvas.selectedItems][0].type;
}"""

ENTER = """(type) => app.canvas.setGraph(
    type ? app.graph.nodes.find(node => node.type === type).subgraph : app.graph)"""

# As large as a user has a node that he works with; `fit_view` would make a single one larger than the screen.
GO_TO = """([type, zoom]) => {
    const node = app.graph.nodes.find(node => node.type === type);
    app.canvas.ds.scale = zoom;
    app.canvas.ds.offset = [400 / zoom - node.pos[0], 200 / zoom - node.pos[1]];
    app.canvas.setDirty(true, true);
}"""

VIEW = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"

# Where the canvas has drawn a widget, on the page: its middle, between the arrows.
WIDGET = """([type, name]) => {
    const {canvas, ds} = app.canvas, page = canvas.getBoundingClientRect();
    const node = app.graph.nodes.find(node => node.type === type);
    const {last_y} = node.widgets.find(widget => widget.name === name);
    const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + last_y + 10];
    return [page.x + (x + ds.offset[0]) * ds.scale, page.y + (y + ds.offset[1]) * ds.scale];
}"""

# On the canvas a node keeps the images it draws; as HTML they are elements in it.
PICTURES = """(id) => {
    const drawn = app.graph.getNodeById(id).imgs ?? [];
    const shown = document.querySelectorAll(`[data-node-id="${id}"] img`);
    const images = shown.length ? [...shown] : drawn;
    return images.filter(image => image.naturalWidth).map(image => [image.naturalWidth, image.naturalHeight]);
}"""


def launch(playwright: Playwright) -> Browser:
    """Playwright's own Chromium, or the system's Chrome, Edge or Chromium; without any, the test is skipped."""
    paths = [path for path in map(shutil.which, ("chromium", "chromium-browser")) if path]
    choices = [{}, {"channel": "chrome"}, {"channel": "msedge"}, *({"executable_path": path} for path in paths)]
    for choice in choices:
        try:
            return playwright.chromium.launch(args=FLAGS, **choice)
        except Error as error:
            if "Executable doesn't exist" not in error.message and "is not found" not in error.message:
                raise
    pytest.skip(NO_BROWSER)


class FrontEnd:
    """The front end in one page. Whatever is waited for raises Playwright's TimeoutError after `LIMIT` seconds."""

    def __init__(self, browser: Browser, server: Server, vue_nodes: bool):
        """`vue_nodes`: nodes are HTML, as in 0.33's newer renderer, instead of drawn on the canvas."""
        self.server, self.vue_nodes = server, vue_nodes
        self._complaints: list[str] = []
        # What the server said to an earlier page is not ours; what it said at its start is the first one's.
        self._known = Counter(server.complaints() if server.pages else [])
        server.pages += 1
        context = browser.new_context(viewport=SCREEN, locale="en-US", color_scheme="dark")
        context.set_default_timeout(LIMIT * 1000)
        # The same on a machine with and without a network.
        context.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
        context.add_init_script(NO_ADVERTISEMENT)
        self.page: Page = context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self._complaints.append(f"browser, thrown: {error.stack or error}"))
        settings = SETTINGS | {"Comfy.VueNodes.Enabled": vue_nodes}
        expect(context.request.post(f"{server.address}/api/settings", data=settings)).to_be_ok()
        self.open()

    def open(self) -> None:
        """Go to the front end; again, as by F5, it forgets what was on the page."""
        self.page.goto(self.server.address)
        self.page.wait_for_function("() => window.app?.extensionManager && window.app.graph")
        expect(self.run_button).to_be_enabled()
        self.nothing_in_front()
        self.page.evaluate(
            "() => { window.steps = 0; app.api.addEventListener('progress', event => steps = event.detail.value); }"
        )

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error", "assert"):
            self._complaints.append(f"browser, {message.type} ({message.location['url']}): {message.text}")

    def all_complaints(self) -> list[str]:
        """Everything from warning up in the browser's console and the server's log, with where it comes from."""
        return [*self._complaints, *self.server.complaints()]

    def new_complaints(self) -> list[str]:
        """Those that this did not give before."""
        new = Counter(self.all_complaints()) - self._known
        self._known.update(new)
        return list(new)

    @property
    def run_button(self) -> Locator:
        # The older front end's is the larger half of a group of that name, the newer one's has the name itself.
        return self.page.locator("button[data-testid=queue-button], [data-testid=queue-button] button").first

    def drop(self, file: Path, at: tuple[float, float] = (SCREEN["width"] / 2, SCREEN["height"] - 80)) -> None:
        """Drag a file from the desktop onto a place on the screen, and wait until it is loaded."""
        self.nothing_in_front()
        self.fit_view()  # a note in the way would keep the file for itself
        self.page.evaluate("() => { window.before = app.graph.nodes[0]; }")
        session = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": event, "data": data, "x": at[0], "y": at[1]})
        session.detach()
        self.page.wait_for_function(
            "() => app.graph.nodes.length && app.graph.nodes[0] !== before && !app.extensionManager.spinner"
        )
        self.fit_view()

    def fit_view(self) -> None:
        """Bring all nodes on the screen: nodes out of sight load no pictures."""
        if self.page.evaluate("() => !app.graph.nodes.length"):
            return  # the newer front end would complain
        # Of selected nodes it would show these. And the front end moves the view of what it has just loaded itself, at
        # times after this.
        self.page.evaluate("() => app.canvas.deselectAll()")

        def fitted() -> bool:
            self.command("Comfy.Canvas.FitView")
            self.page.wait_for_timeout(500)  # the view glides there
            return self.page.evaluate(ALL_IN_SIGHT)

        self.until(fitted, "the nodes did not come into view")

    def note_change(self) -> None:
        """Have the front end look for what was changed, as it does after a key or a click."""
        self.page.evaluate("() => { app.canvas.emitBeforeChange(); app.canvas.emitAfterChange(); }")

    def command(self, name: str) -> None:
        """Carry out a command of the front end, as a menu or a key would."""
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", name)

    def until(self, found: Callable[[], T], failure: str) -> T:
        """What `found` gives once that is something; it is called again and again.

        Raises:
            TimeoutError: `failure`, and what is on the screen.
        """
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if result := found():
                return result
            self.page.wait_for_timeout(100)  # unlike time.sleep, it lets the console's messages in
        raise TimeoutError(f"{failure} within {LIMIT:.0f} s; on the screen: {self.problems()}")

    def nothing_in_front(self) -> None:
        """Wait until what covers the page has faded: it is seen, and catches what is dropped, until then."""
        expect(self.page.locator(".p-dialog, .p-overlay-mask")).to_have_count(0)

    def close_everything(self) -> None:
        """Dialogs and toasts, for the next test."""
        self.page.keyboard.press("Escape")
        # Some go by themselves meanwhile, so none is waited for.
        self.page.evaluate("document.querySelectorAll('.p-toast-close-button').forEach((button) => button.click())")
        expect(self.page.locator(".p-toast-message")).to_have_count(0)

    def graph(self) -> dict[str, Any]:
        """The workflow as the front end would save it: JSON leaves out what is undefined."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def load(self, graph: dict[str, Any]) -> None:
        """Open a saved workflow: its nodes are made anew."""
        self.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)

    def set_widgets(self, changes: dict[str, dict[str, Any]]) -> None:
        """Type of node → name of a widget → value; types and widgets that are not there are passed over."""
        self.page.evaluate(SET_WIDGETS, changes)

    def choose(self, kind: str, name: str, value: str) -> None:
        """Click the list `name` in the first node of this type, and then a value that it offers."""
        self.go_to(kind)
        if self.vue_nodes:
            self.page.get_by_role("combobox", name=name).click()
            self.page.get_by_role("option", name=value, exact=True).click()
        else:
            self.page.mouse.click(*self.page.evaluate(WIDGET, [kind, name]))
            self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(value, exact=True).click()

    def into_a_subgraph(self, kind: str) -> str:
        """Convert the first node of this type, as a user does; the result is the type of the node that holds it."""
        return self.page.evaluate(INTO_A_SUBGRAPH, kind)

    def enter(self, subgraph: str | None) -> None:
        """Show what is in the subgraph node of this type; None = the workflow itself."""
        self.page.evaluate(ENTER, subgraph)

    def add_alone(self, kind: str) -> None:
        """One node of this type, alone on the canvas."""
        self.page.evaluate(ADD, kind)
        self.go_to(kind)

    def go_to(self, kind: str, zoom: float = 1.0) -> None:
        """The first node of this type on the screen, so many times its own size."""
        self.place_view(GO_TO, [kind, zoom])

    def place_view(self, script: str, argument: Any) -> None:
        """Run a script that sets the view, until it stays as that has set it."""

        def there() -> bool:
            self.page.evaluate(script, argument)
            placed = self.page.evaluate(VIEW)
            self.page.wait_for_timeout(300)  # a view that was still gliding would go on
            return self.page.evaluate(VIEW) == placed

        self.until(there, "the view did not stay")

    def problems(self) -> list[str]:
        """Missing nodes, red inputs and whatever else a user would take for an error, in words."""
        red = self.page.locator(RED)
        return [*self.page.evaluate(PROBLEMS), *(text or "something red" for text in red.all_inner_texts())]

    def run(self) -> dict[str, Any]:
        """Press Run and wait for the end; the result is the run's entry in the server's history."""
        return self.ended(self.start())

    def start(self) -> set[str]:
        """Press Run; the result is what `ended` needs."""
        before = set(self._history())
        self.page.evaluate("() => { window.steps = 0; }")
        self.run_button.click()
        return before

    def ended(self, before: set[str]) -> dict[str, Any]:
        def new() -> list[dict[str, Any]]:
            return [entry for run, entry in self._history().items() if run not in before]

        return self.until(new, "the run did not end")[0]

    def cancel(self) -> None:
        self.page.get_by_label("Cancel current run").click()

    def wait_for_pictures(self, node: int, count: int) -> list[list[int]]:
        """Width and height of the pictures that a node shows, once there are as many."""
        self.page.wait_for_function(f"([id, count]) => ({PICTURES})(id).length >= count", arg=[node, count])
        return self.page.evaluate(PICTURES, node)

    def view(self, image: dict[str, str]) -> bytes:
        """The file of a picture in the history."""
        return self.page.context.request.get(f"{self.server.address}/api/view", params=image).body()

    def screenshot(self, path: Path) -> None:
        """The whole workflow on the screen, in a file."""
        self.page.mouse.move(SCREEN["width"] / 2, SCREEN["height"] - 10)  # away from what has a tooltip
        self.page.set_viewport_size(LARGE_SCREEN)
        self.fit_view()
        self.page.screenshot(path=path)
        self.page.set_viewport_size(SCREEN)

    def _history(self) -> dict[str, Any]:
        return self.page.context.request.get(f"{self.server.address}/api/history").json()
