"""At the width they are saved with, our nodes in the bundled workflows have room for what they are called."""

from __future__ import annotations

import json

import pytest

from browser.front_end import FrontEnd
from browser.server import WORKFLOWS

pytestmark = pytest.mark.slow

# What the host could not draw in full it has shortened itself: only its own drawing knows how much room there was.
CUT_OFF = """() => {
    const {canvas} = app, {prototype} = CanvasRenderingContext2D, {fillText} = prototype;
    let drawn;
    prototype.fillText = function (text, ...place) {
        drawn.add(text);
        return fillText.call(this, text, ...place);
    };
    try {
        return app.graph.nodes.filter(({type}) => type.startsWith("RLG")).flatMap(node => {
            drawn = new Set();
            canvas.drawNode(node, canvas.ctx);
            const widgets = (node.widgets ?? []).filter(({element, hidden}) => !element && !hidden);
            const texts = [node.getTitle(), ...widgets.map(({label, name}) => label || name)];
            return texts.filter(text => !drawn.has(text)).map(text => `${node.type}, ${node.size[0]} wide: ${text}`);
        });
    } finally {
        prototype.fillText = fillText;
        canvas.setDirty(true, true);
    }
}"""


def test_no_title_and_no_label_is_cut_off(front_end: FrontEnd) -> None:
    if front_end.vue_nodes:
        pytest.skip("there the browser lays texts out")
    cut_off = {}
    for path in WORKFLOWS:
        workflow = json.loads(path.read_text(encoding="utf-8"))
        front_end.load(workflow)
        cut_off[path.stem] = front_end.page.evaluate(CUT_OFF)
    assert not any(cut_off.values()), cut_off
