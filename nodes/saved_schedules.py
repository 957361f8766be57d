"""What schedules say, in the metadata of saved pictures.

A picture's metadata hold the numbers of the widgets; what they mean step by step is for the reader to work out. Beside
them the host saves everything that stands in `extra_pnginfo`, so the text goes there when a prompt is queued. Not when
a node runs: a node whose output the host still has does not run again.
"""

from __future__ import annotations

from typing import Any

from .page import running_server
from .schedules import NODES

KEY = "rlg_schedules"


def save_with_pictures() -> None:
    """From now on, pictures carry the text of the schedules in their prompt, if there is a server."""
    if (server := running_server()) is not None:
        server.add_on_prompt_handler(add_texts)


def add_texts(request: dict[str, Any]) -> dict[str, Any]:
    """A handler of queued prompts: adds {node's id and type: text of its schedule} to what is saved with pictures.

    Nodes with a value that comes from another node, or that cannot be used, are left out: the one is known only later,
    and about the other the host or the node itself will speak.
    """
    prompt = request.get("prompt")
    texts = {}
    for node_id, node in prompt.items() if isinstance(prompt, dict) else ():
        if (text := _text(node)) is not None:
            texts[f"{node_id} {node['class_type']}"] = text
    if texts:
        request.setdefault("extra_data", {}).setdefault("extra_pnginfo", {})[KEY] = texts
    return request


def _text(node: Any) -> str | None:
    try:
        kind, widgets = NODES[node["class_type"]], node["inputs"]
        return None if any(isinstance(value, list) for value in widgets.values()) else str(kind.schedule(**widgets))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
