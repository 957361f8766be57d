"""The page is told of each cell of a sweep as soon as it is there, once, and of nothing where all are known."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from comfy_execution.utils import CurrentNodeContext
from PIL import Image

from pairs import SIZE, task


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


def test_a_script_has_no_page(base, tune, run_node, sent) -> None:
    run_node("RLGSweep", base=base, tuned=tune(base), scales="0", switch_percents="", **task(steps=1))
    assert sent == []
