"""The bundled subgraphs: the host offers them, and what is in them is a graph that its front end and server accept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from demo.server import PACK, REPO
from demo.ui_to_api import to_prompt, widget_slots
from host_routes import served

BLUEPRINTS = sorted((REPO / "subgraphs").glob("*.json"))
INPUTS, OUTPUTS = -10, -20
"""Ids of the two ends of a subgraph, as the front end has them."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

Json = dict[str, Any]


@pytest.fixture(params=BLUEPRINTS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def root(path: Path) -> Json:
    return json.loads(path.read_text(encoding="ascii"))


@pytest.fixture
def graph(root: Json) -> Json:
    (graph,) = root["definitions"]["subgraphs"]
    return graph


def test_the_host_offers_every_blueprint(rlg: SimpleNamespace) -> None:
    """Plain ASCII: ComfyUI 0.3.75 reads the files in the encoding of the system."""
    (answer,) = served(PACK, "/global_subgraphs")
    ours = {
        entry["name"]: identity
        for identity, entry in json.loads(answer).items()
        if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"
    }
    assert sorted(ours) == [path.stem for path in BLUEPRINTS]
    for path in BLUEPRINTS:
        (answer,) = served(PACK, f"/global_subgraphs/{ours[path.stem]}")
        assert json.loads(answer)["data"] == path.read_text(encoding="ascii")


def test_it_is_one_node_that_shows_the_ends_of_its_graph(path: Path, root: Json, graph: Json) -> None:
    """The front end takes a blueprint only if its root holds a single node, of the subgraph's id."""
    (node,) = root["nodes"]
    assert node["type"] == graph["id"] == str(UUID(graph["id"]))
    assert root["last_node_id"] == node["id"] and root["links"] == []
    assert node["title"] == graph["name"] == path.stem
    for side in ("inputs", "outputs"):
        outside, inside = ([(s["name"], s["type"], s.get("label")) for s in each[side]] for each in (node, graph))
        assert outside == inside
        assert len({name for name, *_ in inside}) == len(inside)
    assert all(socket["widget"] == {"name": socket["name"]} for socket in node["inputs"] if socket["type"] in WIDGETS)
    assert root["extra"]["BlueprintDescription"] == graph["description"]
    identities = [socket["id"] for socket in graph["inputs"] + graph["outputs"]]
    assert len(set(identities)) == len(identities) and all(str(UUID(each)) == each for each in identities)


def test_nodes_are_the_hosts_with_all_their_inputs(graph: Json, object_info: dict[str, Json]) -> None:
    """Links name sockets by number, in the front end's order: sockets first, then what has a widget."""
    for node in graph["nodes"]:
        info = object_info[node["type"]]
        declared = [
            (name, "COMBO" if isinstance(kind, list) else kind, bool(options and options[0].get("forceInput")))
            for group in ("required", "optional")
            for name in info["input_order"].get(group, [])
            for kind, *options in [info["input"][group][name]]
        ]
        sockets = [(name, kind) for name, kind, forced in declared if forced or kind not in WIDGETS]
        widgets = [(name, kind) for name, kind, forced in declared if not forced and kind in WIDGETS]
        assert [(s["name"], s["type"]) for s in node["inputs"]] == sockets + widgets
        assert [s["name"] for s in node["inputs"] if "widget" in s] == [name for name, _ in widgets]
        assert [s["type"] for s in node["outputs"]] == list(info["output"])
        assert [s["name"] for s in node["outputs"]] == list(info["output_name"])
        assert len(node["widgets_values"]) == len(widget_slots(info))


def test_links_agree_at_both_ends(graph: Json) -> None:
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link["id"]: link for link in graph["links"]}
    assert len(links) == len(graph["links"]) and len(nodes) == len(graph["nodes"])
    state = graph["state"]
    assert state["lastLinkId"] == max(links) and state["lastNodeId"] == max(nodes)
    assert sorted(node["order"] for node in nodes.values()) == list(range(len(nodes)))
    for link in links.values():
        if link["origin_id"] == INPUTS:
            origin = graph["inputs"][link["origin_slot"]]
            assert origin["linkIds"] == [link["id"]]
        else:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in origin["links"]
        if link["target_id"] == OUTPUTS:
            target = graph["outputs"][link["target_slot"]]
            assert target["linkIds"] == [link["id"]]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == link["id"]
        assert origin["type"] == link["type"] == target["type"]
    assert sorted(_link_ids(graph)) == sorted([*links, *links])


def _link_ids(graph: Json) -> Iterator[int]:
    """Of all sockets; each link is at two."""
    for socket in graph["inputs"] + graph["outputs"]:
        yield from socket["linkIds"]
    for node in graph["nodes"]:
        yield from (socket["link"] for socket in node["inputs"] if socket["link"] is not None)
        for socket in node["outputs"]:
            yield from socket["links"]


def _prompt(graph: Json, object_info: dict[str, Json]) -> dict[str, Json]:
    """The prompt of the graph with the values that its widgets hold."""
    inner = [link for link in graph["links"] if link["origin_id"] != INPUTS and link["target_id"] != OUTPUTS]
    ids = {link["id"] for link in inner}
    nodes = [
        node | {"inputs": [s | {"link": s["link"] if s["link"] in ids else None} for s in node["inputs"]]}
        for node in graph["nodes"]
    ]
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return to_prompt({"nodes": nodes, "links": [[link[key] for key in keys] for link in inner]}, object_info)


def test_its_values_are_ones_the_widgets_can_hold(graph: Json, object_info: dict[str, Json]) -> None:
    files = {"ckpt_name", "lora_name"}  # what the user has; the lists are empty here
    for node in _prompt(graph, object_info).values():
        info = object_info[node["class_type"]]["input"]
        for name, value in node["inputs"].items():
            kind, *options = {**info["required"], **info.get("optional", {})}[name]
            if isinstance(value, list) or name in files:
                continue
            if kind == "COMBO" or isinstance(kind, list):
                assert value in (options[0]["options"] if kind == "COMBO" else kind)
            elif kind in ("INT", "FLOAT"):
                assert options[0]["min"] <= value <= options[0]["max"]
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


def test_text_to_image_offers_what_makes_the_picture(root: Json, graph: Json) -> None:
    (node,) = root["nodes"]
    names = {"prompt", "negative_prompt", "scale", "cfg", "steps", "seed", "ckpt_name", "lora_name"}
    assert names <= {socket["name"] for socket in node["inputs"]}
    assert [socket["type"] for socket in node["outputs"]] == ["IMAGE"]
    reached = {link["target_id"] for link in graph["links"] if link["origin_id"] == INPUTS}
    kinds = {node["type"] for node in graph["nodes"] if node["id"] in reached}
    assert {"RLGLoadModels", "RLGKSampler", "CLIPTextEncode"} <= kinds
