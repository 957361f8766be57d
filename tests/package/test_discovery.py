"""Nodes and templates are found: words of the node search, and what the template browser is given."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from comfy_api.v0_0_2 import io as comfy_io
from PIL import Image

from demo.server import PACK, REPO
from host_routes import served

WORKFLOWS = sorted((REPO / "workflows").glob("*.json"))
KNOWS_ALIASES = "search_aliases" in comfy_io.Schema.__dataclass_fields__


def test_hosts_that_know_aliases_find_every_node_by_other_words(rlg: SimpleNamespace) -> None:
    """And older hosts take all nodes without them: an unknown keyword would cost them the whole pack."""
    for node_id, node in rlg.nodes.items():
        if node_id.startswith("RLG"):
            words = node.GET_NODE_INFO_V1().get("search_aliases")
            assert bool(words) == KNOWS_ALIASES, node_id
            if KNOWS_ALIASES:
                assert len(words) == len(set(words)) and all(word == word.lower().strip() for word in words), node_id
                name = node.GET_SCHEMA().display_name.lower()
                assert not [word for word in words if word in name], f"{node_id}: its name says so already"


@pytest.mark.parametrize(
    ("words", "node_id"),
    [
        ("flow-grpo", "RLGLoadLora"),
        ("reinforcement learning guidance", "RLGKSampler"),
        ("x/y plot", "RLGSweep"),
        ("pickscore", "RLGScore"),
        ("interval guidance", "RLGScale"),
        ("best of n", "RLGPickBest"),
    ],
)
def test_what_artists_type_finds_the_node(rlg: SimpleNamespace, words: str, node_id: str) -> None:
    if not KNOWS_ALIASES:
        pytest.skip("this ComfyUI's node search knows no aliases")
    assert words in rlg.nodes[node_id].GET_NODE_INFO_V1()["search_aliases"]


def test_template_browser_lists_every_workflow_with_its_picture(rlg: SimpleNamespace) -> None:
    """Through the host's own routes, at the addresses that the front end asks for."""
    names = [path.stem for path in WORKFLOWS]
    files = [f"/api/workflow_templates/{PACK}/{name}.{kind}" for kind in ("json", "jpg") for name in names]
    listed, *answers = served(PACK, "/workflow_templates", *files)
    assert sorted(json.loads(listed)[PACK]) == names
    for path, workflow, picture in zip(WORKFLOWS, answers[: len(names)], answers[len(names) :], strict=True):
        assert workflow == path.read_bytes()
        assert Image.open(io.BytesIO(picture)).format == "JPEG", path.stem
