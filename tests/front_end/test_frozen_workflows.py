"""Workflows that were saved with an earlier version load in this one, and mean the same.

`frozen/v<version>/` holds for every bundled workflow of a release the file as it was (`name.json`) and the prompt that
ComfyUI made of it then (`name.prompt.json`). Before a release, `python dev.py test -k frozen_workflows --freeze`
writes those of the version in pyproject.toml; the folders of earlier ones never change.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import execution
import folder_paths
import pytest

from demo.ui_to_api import WorkflowError, to_prompt
from model_files import write_empty_models
from packed import REPO
from project import RELEASED, VERSION

FROZEN = Path(__file__).parents[1] / "frozen"
PROMPT = ".prompt.json"

Prompt = dict[str, dict[str, Any]]


def _saved() -> Iterator[tuple[str, dict[str, Any], Prompt]]:
    """Version and name, UI file and prompt of each."""
    for path in sorted(FROZEN.glob(f"v*/*{PROMPT}")):
        name = path.name.removesuffix(PROMPT)
        yield f"{path.parent.name}/{name}", _read(path.with_name(f"{name}.json")), _read(path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _freeze(request: pytest.FixtureRequest, object_info: dict[str, Any]) -> None:
    """Where that is asked for."""
    if not request.config.getoption("--freeze"):
        return
    folder = FROZEN / f"v{VERSION}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (REPO / "workflows").glob("*.json"):
        prompt = to_prompt(_read(path), object_info)
        shutil.copy(path, folder)
        text = json.dumps(prompt, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{path.stem}{PROMPT}").write_text(text, encoding="utf-8", newline="\n")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where the host looks for checkpoints and LoRAs."""
    for kind in ("checkpoints", "loras"):
        (tmp_path / kind).mkdir()
        extensions = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def refusal(rlg: SimpleNamespace) -> Callable[[Prompt], Any]:
    """What the host has against a prompt, or its lists of choices, which not every host compares; else None."""

    def validate(prompt: Prompt) -> Any:
        valid, error, _, of_nodes = asyncio.run(execution.validate_prompt("frozen", prompt, None))
        if not valid or of_nodes:
            return error, of_nodes
        return next(filter(None, map(_gone, prompt.values())), None)

    def _gone(node: dict[str, Any]) -> str | None:
        inputs = rlg.nodes[node["class_type"]].INPUT_TYPES()
        for name, (kind, *options) in {**inputs["required"], **inputs.get("optional", {})}.items():
            chosen = node["inputs"].get(name)
            if kind == "COMBO" and isinstance(chosen, str) and chosen not in options[0]["options"]:
                return f"{node['class_type']}.{name}: {chosen}"
        return None

    return validate


def test_every_released_version_has_its_workflows() -> None:
    """Those that the changelog gives a date."""
    released = {f"v{version}" for version in RELEASED}
    frozen = {name.split("/")[0] for name, *_ in _saved()}
    assert released <= frozen
    assert frozen, "there is nothing to test"


def test_a_workflow_of_an_earlier_version_becomes_the_prompt_that_it_was(object_info: dict[str, Any]) -> None:
    """Positional values reach the inputs that they were saved for; ids, links and slots are where they were."""
    for name, workflow, prompt in _saved():
        assert to_prompt(workflow, object_info) == prompt, name


def test_the_host_would_run_a_prompt_of_an_earlier_version(models: Path, refusal: Callable[[Prompt], Any]) -> None:
    """Also without its UI file, as programs send it: every node and input exists, every value is allowed."""
    for name, _, prompt in _saved():
        write_empty_models(models, [prompt])
        assert refusal(prompt) is None, name


def test_what_would_break_a_saved_workflow_is_noticed(
    models: Path, refusal: Callable[[Prompt], Any], object_info: dict[str, Any]
) -> None:
    workflow, prompt = next((ui, api) for name, ui, api in _saved() if name.endswith("/rlg_text_to_image"))
    write_empty_models(models, [prompt])
    node = object_info["RLGKSampler"]
    swapped = {"steps": "cfg", "cfg": "steps"}
    order = {group: [swapped.get(name, name) for name in names] for group, names in node["input_order"].items()}
    assert to_prompt(workflow, {**object_info, "RLGKSampler": {**node, "input_order": order}}) != prompt

    without = {name: info for name, info in object_info.items() if name != "RLGKSampler"}
    with pytest.raises(WorkflowError, match="no such node"):
        to_prompt(workflow, without)

    sampler = next(node for node in prompt.values() if node["class_type"] == "RLGKSampler")
    for name, value in {"sampler_name": "one that is gone", "scale": 99.0, "base": ["no such node", 0]}.items():
        saved, sampler["inputs"][name] = sampler["inputs"][name], value
        assert refusal(prompt), name
        sampler["inputs"][name] = saved
    assert refusal(prompt) is None
