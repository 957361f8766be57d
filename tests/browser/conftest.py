"""One server and one browser for all browser tests; each test is watched for complaints of ours.

While the browser is open Playwright's event loop runs in this thread, so nothing here may call `asyncio.run`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from browser.front_end import FrontEnd, launch
from browser.server import HOST, Server, is_ours, running_server
from packed import REPO

SCREENSHOTS = REPO / "output" / "browser"
VUE_NODES_FROM = (0, 33)
"""Version of ComfyUI from which on its front end draws nodes in two ways that users choose from."""


def _renderers() -> list[str]:
    text = (HOST / "comfyui_version.py").read_text(encoding="utf-8")
    major, minor = re.search(r"(\d+)\.(\d+)", text).groups()
    return ["canvas", "vue"] if (int(major), int(minor)) >= VUE_NODES_FROM else ["canvas"]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """After the browser: without one there is nothing to start."""
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="package", params=_renderers())
def front_end(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[FrontEnd]:
    front_end = FrontEnd(browser, server, vue_nodes=request.param == "vue")
    yield front_end
    front_end.page.context.close()


@pytest.fixture(scope="package")
def artefacts(front_end: FrontEnd) -> Iterator[Path]:
    """The folder for screenshots, and at the end for everything that a worker heard complaints of, ours or not."""
    folder = SCREENSHOTS / f"{front_end.server.version}-{'vue' if front_end.vue_nodes else 'canvas'}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    worker = os.environ.get("PYTEST_XDIST_WORKER", "all")
    (folder / f"complaints-{worker}.txt").write_text("\n".join(front_end.all_complaints()), encoding="utf-8")


@pytest.fixture(autouse=True)
def nothing_of_ours_complains(request: pytest.FixtureRequest, front_end: FrontEnd, artefacts: Path) -> Iterator[None]:
    """No warning or error of ours in the console or the server's log; those of the start count for the first test."""
    yield
    front_end.screenshot(artefacts / f"{request.node.name}.png")
    ours = [complaint for complaint in front_end.new_complaints() if is_ours(complaint)]
    assert not ours, "\n".join(ours)
