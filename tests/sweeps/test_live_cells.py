"""The page is told of each cell of a sweep and of each branch as soon as it is there, and of nothing that it knows."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import pytest
from comfy_execution.utils import CurrentNodeContext
from PIL import Image

from pairs import SIZE, Counter, task


@pytest.fixture
def sent(rlg: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the page would get."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(rlg.module("nodes.page"), "send", lambda event, data: messages.append({"event": event, **data}))
    return messages


def test_each_cell_is_shown_once_it_is_done(base, tune, run_node, sent) -> None:
    tuned, inputs = tune(base), task(batch=2, steps=2)

    def run(scales: str) -> tuple:
        with CurrentNodeContext("a prompt", "7"):
            return run_node("RLGSweep", base=base, tuned=tuned, scales=scales, switch_percents="", **inputs)

    _, labels = run("2, 0, 1, 1")
    assert [message["begins"] for message in sent] == [True, False, False]  # the third and the fourth cell are one
    assert all(message["node"] == "7" and message["labels"] == labels for message in sent)
    pictures = [picture for message in sent for picture in message["pictures"].items()]
    assert sorted(number for number, _ in pictures) == list(range(8))
    shown = dict(pictures)
    assert shown[4] == shown[6] and len({shown[number] for number in range(6)}) == 6
    head, _, data = shown[0].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and (picture.format, picture.size) == ("JPEG", (SIZE, SIZE))

    sent.clear()
    run("2, 0, 1")
    assert sent == []
    run("2, 0.5")
    assert [set(message["pictures"]) for message in sent] == [{0, 1}, {2, 3}]  # what is known is there at once
    assert sent[0]["pictures"][0] == shown[0]


def test_each_branch_is_shown_before_the_next_is_sampled(base, tune, run_node, rlg, monkeypatch) -> None:
    counter, messages = Counter(base), []
    monkeypatch.setattr(
        rlg.module("nodes.page"), "send", lambda event, data: messages.append((counter.rows, event, data))
    )
    fork = {"branches": 3, "branch_percent": 0.5, "noise_level": 0.7, "scale": 1.6}
    with CurrentNodeContext("a prompt", "12:3"):
        _, labels = run_node("RLGBranch", base=base, tuned=tune(base), **fork, **task(batch=2, steps=4))
    rows_per_step = 2 * 2 * 2  # two pictures, cond and uncond, two models
    assert [rows for rows, _, _ in messages] == [rows_per_step * steps for steps in (4, 6, 8)]
    assert all(event == "rlg_cells" and data["node"] == "12:3" for _, event, data in messages)
    assert all(data["labels"] == labels for _, _, data in messages)
    assert [data["begins"] for _, _, data in messages] == [True, False, False]
    assert [set(data["pictures"]) for _, _, data in messages] == [{0, 1}, {2, 3}, {4, 5}]
    shown = {picture for _, _, data in messages for picture in data["pictures"].values()}
    assert len(shown) == 6 and all(picture.startswith("data:image/jpeg;base64,") for picture in shown)


def test_a_script_has_no_page(base, tune, run_node, sent) -> None:
    tuned, inputs = tune(base), task(steps=1)
    run_node("RLGSweep", base=base, tuned=tuned, scales="0", switch_percents="", **inputs)
    run_node("RLGBranch", base=base, tuned=tuned, scale=1.0, branches=1, branch_percent=0.0, noise_level=0.7, **inputs)
    assert sent == []


@pytest.mark.parametrize("client", ["the page", None])
def test_nothing_is_sent_to_pages_that_did_not_queue_the_prompt(rlg, monkeypatch, client) -> None:
    """A prompt of a script has no client, and a message without one goes to all pages."""
    page, sent = rlg.module("nodes.page"), []
    server = SimpleNamespace(client_id=client, send_sync=lambda event, data, sid: sent.append((event, sid)))
    monkeypatch.setattr(page, "running_server", lambda: server)
    page.send("rlg_cells", {})
    assert sent == ([("rlg_cells", client)] if client else [])


@pytest.mark.parametrize(
    ("extra", "workflow"),
    [({"extra_pnginfo": {"workflow": {"id": "the graph"}}}, "the graph"), ({}, None), ({"extra_pnginfo": None}, None)],
)
def test_a_message_says_which_workflow_it_is_about(rlg, monkeypatch, extra, workflow) -> None:
    """The page may show another one by now, whose nodes have the same ids. A script gives the server none."""
    page, sent = rlg.module("nodes.page"), []
    running = {
        3: (0, "another", {}, {"extra_pnginfo": {"workflow": {"id": "wrong"}}}, []),
        4: (1, "run", {}, extra, []),
    }
    server = SimpleNamespace(
        client_id="page",
        send_sync=lambda event, data, sid: sent.append(data),
        prompt_queue=SimpleNamespace(currently_running=running),
    )
    monkeypatch.setattr(page, "running_server", lambda: server)
    with CurrentNodeContext("run", "12:3"):
        page.send("rlg_cells", {"node": "12:3"})
    assert sent == [{"node": "12:3", "prompt": "run", "workflow": workflow}]
