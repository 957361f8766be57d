"""A workflow as ComfyUI's front end saves it, turned into the prompt that its server runs.

The front end does this in the browser before it queues a workflow. Here it is done from the server's own
`/object_info`, which says for every node which inputs are widgets and in which order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
NOTES = frozenset({"Note", "MarkdownNote"})
ACTIVE = 0
"""Mode of a node that runs; 2 is muted, 4 bypassed."""

Json = dict[str, Any]


class WorkflowError(ValueError):
    """The workflow cannot be run by this server; the message says which node and why."""


def to_prompt(workflow: Json, object_info: Mapping[str, Json]) -> dict[str, Json]:
    """The API prompt of a UI workflow: node id → {"class_type", "inputs"}.

    Every input becomes a link ([node id, output slot]) or a widget's value; sockets that nothing is connected to are
    left out where they are optional. Muted and bypassed nodes and subgraphs are not supported.

    Raises:
        WorkflowError: a node is unknown to the server, inactive, not fully connected, or its widgets do not match.
    """
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    ids = {node["id"] for node in nodes}
    sources = {}
    for link_id, origin, slot, *_ in workflow["links"]:
        if origin not in ids:
            raise WorkflowError(f"link {link_id} comes from node {origin}, which is not in the workflow.")
        sources[link_id] = [str(origin), slot]
    return {
        str(node["id"]): {"class_type": node["type"], "inputs": _inputs(node, node_info(node, object_info), sources)}
        for node in nodes
    }


def node_info(node: Json, object_info: Mapping[str, Json]) -> Json:
    """What the server says about this node's type.

    Raises:
        WorkflowError: it does not know the type, or the node is muted or bypassed.
    """
    if node["type"] not in object_info:
        raise WorkflowError(f"{_name(node)}: the server has no such node; install the pack that provides it.")
    if node.get("mode", ACTIVE) != ACTIVE:
        raise WorkflowError(f"{_name(node)}: it is muted or bypassed; set it to Always, or delete it.")
    return object_info[node["type"]]


def widget_slots(info: Json) -> list[tuple[str, str | None]]:
    """A node's widgets in the order of `widgets_values`: (input name, None), and for the widget that says what becomes
    of a seed after a run, which is no input of the node, (seed's name, "control")."""
    slots: list[tuple[str, str | None]] = []
    for name, kind, options in _declared_inputs(info):
        if not _is_widget(kind, options):
            continue
        slots.append((name, None))
        # The front end gives one to every INT with these names, asked or not.
        if options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")):
            slots.append((name, "control"))
    return slots


def set_widget(node: Json, info: Json, name: str, value: Any) -> None:
    """Change one widget of a UI node in place."""
    node["widgets_values"][widget_slots(info).index((name, None))] = value


def _inputs(node: Json, info: Json, sources: Mapping[int, list]) -> Json:
    slots, values = widget_slots(info), node.get("widgets_values") or []
    required = info["input"].get("required", {})
    # Optional widgets that came with a newer version of the node keep their defaults.
    if len(values) > len(slots) or any(name in required for name, _ in slots[len(values) :]):
        raise WorkflowError(
            f"{_name(node)}: it has {len(values)} widget values and this server's node {len(slots)} widgets; "
            "the workflow was saved with another version of the node."
        )
    widgets = {name: value for (name, control), value in zip(slots, values, strict=False) if not control}
    linked = {socket["name"]: socket["link"] for socket in node["inputs"] if socket["link"] is not None}

    inputs: Json = {}
    for name, *_ in _declared_inputs(info):
        if name in linked:
            if linked[name] not in sources:
                raise WorkflowError(f"{_name(node)}: input '{name}' has link {linked[name]}, which does not exist.")
            inputs[name] = sources[linked.pop(name)]
        elif name in widgets:
            inputs[name] = widgets[name]
        elif name in required:
            raise WorkflowError(f"{_name(node)}: input '{name}' is not connected.")
    if linked:
        raise WorkflowError(f"{_name(node)}: this server's node has no input '{next(iter(linked))}'.")
    return inputs


def _declared_inputs(info: Json) -> Iterator[tuple[str, Any, Json]]:
    """(name, type, options) of each input, in the order the front end shows them."""
    for group in ("required", "optional"):
        declared = info["input"].get(group, {})
        for name in info["input_order"].get(group, []):
            kind, *options = declared[name]
            yield name, kind, options[0] if options else {}


def _is_widget(kind: Any, options: Json) -> bool:
    is_combo = isinstance(kind, list)  # the older declaration: the type is the list of choices
    return (is_combo or kind in WIDGET_TYPES) and not options.get("forceInput")


def _name(node: Json) -> str:
    return f"node {node['id']} ({node['type']})"
