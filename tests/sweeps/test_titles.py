"""Titles of grids and plots say what made the pictures, unless the user says something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

PROMPT: dict[str, dict[str, Any]] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd3/medium.safetensors"}},
    "2": {"class_type": "RLGLoadLora", "inputs": {"model": ["1", 0], "lora_name": "GenEval", "strength": 1.0}},
    "3": {"class_type": "LoraLoader", "inputs": {"model": ["2", 0], "lora_name": "rl\\pick.v2.safetensors"}},
    "4": {"class_type": "RLGSweep", "inputs": {"base": ["1", 0], "tuned": ["3", 0], "scales": "0, 1"}},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "RLGLoadReward", "inputs": {"name": "pickscore", "file": "auto"}},
    "7": {"class_type": "RLGScore", "inputs": {"images": ["5", 0], "reward": ["6", 0], "prompt": "cat"}},
    "8": {"class_type": "RLGGrid", "inputs": {"images": ["5", 0], "labels": ["4", 1], "title": ""}},
    "9": {"class_type": "RLGPlot", "inputs": {"scores": ["7", 0], "labels": ["4", 1]}},
    "10": {"class_type": "RLGLoadLora", "inputs": {"model": ["1", 0], "lora_name": "not connected"}},
}


@pytest.fixture(scope="module")
def provenance(rlg: SimpleNamespace) -> Any:
    return rlg.module("nodes.provenance")


def _node(node_id: str, prompt: dict[str, Any] | None = PROMPT) -> Any:
    """What the host gives a node class that runs."""
    return SimpleNamespace(hidden=SimpleNamespace(prompt=prompt, unique_id=node_id))


def test_an_empty_title_is_the_models_and_loras_that_lead_there(provenance: Any) -> None:
    """Each once, in their order; not those that lead elsewhere."""
    assert provenance.title_of(_node("8"), "", ("images", "labels")) == "medium + GenEval + pick.v2"


def test_a_tuned_model_that_an_axis_replaces_is_not_in_the_title(provenance: Any) -> None:
    axes = {
        "20": {"class_type": "RLGLoraAxis", "inputs": {"model": ["1", 0], "lora_1": "a", "lora_2": "b"}},
        "21": {"class_type": "RLGAxis", "inputs": {"vary": "seed", "values": "1", "axis": ["20", 0]}},
    }
    for axis, title in (("20", "medium"), ("21", "medium")):
        sweep = {"class_type": "RLGSweep", "inputs": PROMPT["4"]["inputs"] | {"axis": [axis, 0]}}
        prompt = PROMPT | axes | {"4": sweep}
        assert provenance.title_of(_node("8", prompt), "", ("images", "labels")) == title
    seeds = axes | {"21": {"class_type": "RLGAxis", "inputs": {"vary": "seed", "values": "1"}}}
    sweep = {"class_type": "RLGSweep", "inputs": PROMPT["4"]["inputs"] | {"axis": ["21", 0]}}
    title = provenance.title_of(_node("8", PROMPT | seeds | {"4": sweep}), "", ("images", "labels"))
    assert title == "medium + GenEval + pick.v2"


def test_a_written_title_stays_and_a_space_is_none(provenance: Any) -> None:
    assert provenance.title_of(_node("8"), "mine", ("images",)) == "mine"
    assert provenance.title_of(_node("8"), " ", ("images",)) == ""


def test_the_reward_is_called_by_its_name_unless_the_user_calls_it_otherwise(provenance: Any) -> None:
    assert provenance.reward_of(_node("9"), "reward") == "pickscore"
    assert provenance.reward_of(_node("9"), "PickScore v1") == "PickScore v1"


def test_a_reward_that_the_model_was_trained_on_is_not_the_one_of_its_scores(provenance: Any) -> None:
    """Nor one that has picked the pictures; and the LoRA that was trained is one of those that made them."""
    prompt = PROMPT | {
        "11": {"class_type": "RLGLoadReward", "inputs": {"name": "aesthetic", "file": "auto"}},
        "12": {"class_type": "RLGTrainLora", "inputs": {"model": ["1", 0], "reward": ["11", 0], "name": "mine"}},
        "4": {"class_type": "RLGSweep", "inputs": PROMPT["4"]["inputs"] | {"tuned": ["12", 0]}},
        "13": {"class_type": "RLGScore", "inputs": {"images": ["5", 0], "reward": ["11", 0], "prompt": "cat"}},
        "14": {"class_type": "RLGPickBest", "inputs": {"images": ["5", 0], "scores": ["13", 0], "labels": ["4", 1]}},
        "7": {"class_type": "RLGScore", "inputs": PROMPT["7"]["inputs"] | {"images": ["14", 0]}},
        "15": {"class_type": "RLGPlot", "inputs": {"scores": ["14", 1], "labels": ["14", 2]}},
    }
    assert provenance.reward_of(_node("9", prompt), "reward") == "pickscore"
    assert provenance.reward_of(_node("15", prompt), "reward") == "aesthetic"
    assert provenance.title_of(_node("8", prompt), "", ("images", "labels")) == "medium + mine"


def test_without_a_prompt_there_is_nothing_to_say(provenance: Any) -> None:
    """As in a script that calls the node itself, or with scores from elsewhere."""
    for node in (SimpleNamespace(hidden=None), _node("8", None), _node("unknown")):
        assert provenance.title_of(node, "", ("images",)) == ""
        assert provenance.reward_of(node, "reward") == "reward"


def test_a_loop_in_a_prompt_is_no_endless_one(provenance: Any) -> None:
    prompt = {"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}, "2": {"class_type": "B", "inputs": {"x": ["1", 0]}}}
    assert provenance.title_of(_node("1", prompt), "", ("x",)) == ""


@pytest.mark.parametrize("node", ["RLGGrid", "RLGPlot"])
def test_what_shows_pictures_is_an_output_of_its_own(rlg: SimpleNamespace, node: str) -> None:
    """It runs without a Save Image behind it, and the host sends what it has shown again when nothing has changed."""
    assert rlg.nodes[node].OUTPUT_NODE


@pytest.mark.parametrize(("title", "shown"), [("", "medium + GenEval + pick.v2"), ("mine", "mine"), (" ", "")])
def test_the_grid_has_that_title(rlg: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, title: str, shown: str) -> None:
    module, drawn = rlg.module("nodes.sweep"), []
    own = module.labelled_grid
    monkeypatch.setattr(module, "labelled_grid", lambda *args: drawn.append(args[3]) or own(*args))
    node = type("Running", (module.RLGGrid,), {"hidden": _node("8").hidden})
    node.execute(torch.zeros(1, 8, 8, 3), ["scale 1"], 0, title)
    assert drawn == [shown]
