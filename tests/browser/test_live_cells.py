"""Cells and branches are in the viewer of RLG Grid as soon as they are sampled, also where a subgraph lies between."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS

pytestmark = pytest.mark.slow

STEPS = 30
"""So many that the browser has time to look between one cell and the next, also on a machine that is not busy."""
SMALL = {"EmptySD3LatentImage": {"width": 64, "height": 64}}
FILES = {"RLGSweep": "RLG 02 - Scale sweep", "RLGBranch": "RLG 07 - Branch and pick"}
FIVE = {
    "RLGSweep": {"steps": STEPS, "scales": "0, 1, 2, 3, 4"},
    "RLGBranch": {"steps": STEPS, "branches": 5, "branch_percent": 0.1},
}
FIRST = {"RLGSweep": "scale 0", "RLGBranch": "branch 1"}


def _load(front_end: FrontEnd, sampler: str, seed: int) -> str:
    """The workflow of a sampler with five cells that no other test has; the result is the label of the first.

    What the host has from another test, or from the same one with the other renderer, it does not sample again.
    """
    own = seed + 100 * front_end.vue_nodes
    (file,) = [path for path in WORKFLOWS if path.stem == FILES[sampler]]
    front_end.drop(file)
    front_end.set_widgets(SMALL | {sampler: FIVE[sampler] | {"seed": own}})
    return f"{FIRST[sampler]}, seed {own}"


def _viewer(front_end: FrontEnd) -> Locator:
    return front_end.page.get_by_role("group", name="Cells of the sweep")


def _sees_a_preview(viewer: Locator, first: str) -> None:
    """Of the first cell, when not all cells are there yet."""
    expect(viewer.locator("figcaption")).to_have_text(f"{first} (preview)")
    expect(_picture(viewer)).to_have_attribute("src", re.compile("^data:image/jpeg"))
    expect(viewer.locator(".rlg-map button")).to_have_count(5)
    assert viewer.locator(".rlg-map img").count() < 5


def _sees_the_pictures(viewer: Locator, first: str) -> None:
    expect(viewer.locator("figcaption")).to_have_text(first)
    expect(viewer.locator(".rlg-map img")).to_have_count(5)
    expect(_picture(viewer)).to_have_js_property("naturalWidth", 64)
    assert "data:" not in _picture(viewer).get_attribute("src")


def _picture(viewer: Locator) -> Locator:
    return viewer.locator(".rlg-picture img:not(.rlg-under)")


def test_cells_appear_as_they_are_done_and_cancel_keeps_them(front_end: FrontEnd, artefacts: Path) -> None:
    """Small pictures first, then the exact ones in their places; those that were done are not sampled again."""
    first = _load(front_end, "RLGSweep", 8)
    front_end.go_to("RLGGrid")
    before = front_end.start()
    viewer = _viewer(front_end)
    _sees_a_preview(viewer, first)
    front_end.cancel()
    front_end.ended(before)
    front_end.page.screenshot(path=artefacts / "cells_of_a_cancelled_sweep.png")
    expect(viewer.get_by_role("button", name="Use this scale")).to_be_enabled()
    expect(viewer.get_by_role("button", name="To Load Image")).to_be_disabled()

    assert front_end.run()["status"]["status_str"] == "success"
    _sees_the_pictures(viewer, first)
    expect(viewer.get_by_role("button", name="To Load Image")).to_be_enabled()


@pytest.mark.parametrize(
    ("sampler", "subgraphs", "seed"),
    [("RLGBranch", 0, 9), ("RLGSweep", 1, 10), ("RLGBranch", 2, 11)],
    ids=["branch", "sweep in a subgraph", "branch two subgraphs deep"],
)
def test_the_grid_sees_what_is_sampled(front_end: FrontEnd, sampler: str, subgraphs: int, seed: int) -> None:
    first, kind = _load(front_end, sampler, seed), sampler
    for _ in range(subgraphs):
        kind = front_end.into_a_subgraph(kind)
    front_end.go_to("RLGGrid")
    before = front_end.start()
    _sees_a_preview(_viewer(front_end), first)
    run = front_end.ended(before)
    assert run["status"]["status_str"] == "success" and front_end.problems() == []
    (path,) = [path for path, node in run["prompt"][2].items() if node["class_type"] == sampler]
    assert path.count(":") == subgraphs
    _sees_the_pictures(_viewer(front_end), first)


def test_a_grid_in_a_subgraph_sees_the_sweep_outside(front_end: FrontEnd) -> None:
    first = _load(front_end, "RLGSweep", 12)
    front_end.enter(front_end.into_a_subgraph("RLGGrid"))
    before = front_end.start()
    _sees_a_preview(_viewer(front_end), first)
    front_end.cancel()
    front_end.ended(before)
    front_end.enter(None)
