"""A training run as its page shows it: the course while it goes on and after, and a preview of base and tuned model."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, expect

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS
from browser.test_workflows_in_browser import SMALL

pytestmark = pytest.mark.slow

(TRAIN,) = [path for path in WORKFLOWS if path.stem == "RLG 10 - Train and guide"]
(ANOTHER,) = [path for path in WORKFLOWS if path.stem == "RLG 11 - ImageReFL from a folder"]


@pytest.mark.parametrize("inside", [False, True], ids=["in the workflow", "in a subgraph"])
def test_the_course_of_a_training_run_is_in_its_node(front_end: FrontEnd, inside: bool) -> None:
    front_end.drop(TRAIN)
    own = {**SMALL["RLGTrainLora"], "name": f"seen {inside} {front_end.vue_nodes}", "iterations": 3}
    front_end.set_widgets({**SMALL, "RLGTrainLora": own})
    if inside:
        front_end.enter(front_end.into_a_subgraph("RLGTrainLora"))
    course = front_end.page.locator(".rlg-training")
    expect(course).to_contain_text("Run to train")
    before = front_end.start()
    # While it runs: the first iteration is there before the last.
    expect(course).to_contain_text("iteration 1 of 3", timeout=120_000)
    assert front_end.ended(before)["status"]["status_str"] == "success"
    expect(course).to_contain_text("iteration 3 of 3")
    lines = course.locator("polyline.rlg-line")
    expect(lines).to_have_count(2)  # of one group nothing can be clipped
    assert all(len(line.get_attribute("points").split()) == 3 for line in lines.all())
    assert course.get_by_role("img").get_attribute("aria-label").startswith("Reward")
    assert front_end.problems() == []
    front_end.enter(None)


def _begun(front_end: FrontEnd, name: str) -> tuple[Locator, set[str]]:
    """The course of a run of 200 iterations after the first of them, and what `FrontEnd.ended` needs."""
    front_end.drop(TRAIN)
    own = {**SMALL["RLGTrainLora"], "name": f"{name} {front_end.vue_nodes}", "iterations": 200}
    front_end.set_widgets({**SMALL, "RLGTrainLora": own})
    front_end.go_to("RLGTrainLora")
    course = front_end.page.locator(".rlg-training")
    before = front_end.start()
    expect(course).to_contain_text("iteration 1 of 200", timeout=120_000)
    return course, before


def test_a_cancelled_run_says_that_it_stopped(front_end: FrontEnd) -> None:
    course, before = _begun(front_end, "cancelled")
    front_end.cancel()
    front_end.ended(before)
    stopped = re.compile(r"stopped after iteration \d+ of 200")
    expect(course).to_contain_text(stopped)
    # Also in a node that is made anew, as by Undo.
    front_end.load(front_end.graph())
    front_end.go_to("RLGTrainLora")
    expect(course).to_contain_text(stopped)


def test_a_run_is_seen_in_its_own_workflow(front_end: FrontEnd) -> None:
    """Another one has nodes of the same ids."""
    course, before = _begun(front_end, "of its own")
    workflow = front_end.graph()
    front_end.drop(ANOTHER)
    front_end.go_to("RLGTrainLora")
    told = "() => new Promise(heard => app.api.addEventListener('rlg_training', () => heard(true), {once: true}))"
    assert front_end.page.evaluate(told)
    expect(course).to_contain_text("Run to train")
    front_end.load(workflow)
    front_end.go_to("RLGTrainLora")
    expect(course).to_contain_text(re.compile(r"iteration \d+ of 200"))
    front_end.cancel()
    front_end.ended(before)
