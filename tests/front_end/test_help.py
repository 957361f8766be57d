"""Help pages and guides say what is so: each node has a page, and names, ranges and files in them are the code's."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
HELP, GUIDE = REPO / "web" / "docs", REPO / "docs" / "guide"
GUIDES = [REPO / "docs" / "how_strong.md", REPO / "docs" / "how_it_works.md"]
PAGES = sorted(HELP.glob("*.md"))

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
OF_THE_MACHINE = {"ckpt_name", "lora_name", "file", "sampler_name", "scheduler"}
OF_THE_MACHINE |= {f"lora_{number}" for number in (1, 2, 3, 4)}
"""Combos whose choices are files, or the host's."""
LARGE = {2**64 - 1: "2^64 − 1", 10**9: "10^9"}


def _nodes(rlg: SimpleNamespace) -> dict[str, Any]:
    return {node_id: node for node_id, node in rlg.nodes.items() if node_id.startswith("RLG")}


def _list(text: str, heading: str) -> list[tuple[str, str, str]]:
    """Name, what stands in brackets, and words of each entry of the list under a heading.

    Lists, as the help panel is narrower than a table of this many columns.
    """
    _, _, after = text.partition(f"## {heading}\n\n")
    assert after, f"there is no heading {heading}"
    entries, _, _ = after.partition("\n\n")
    return [re.fullmatch(r"- \*\*(.+?)\*\* \((.+?)\): (.+)", line).groups() for line in entries.splitlines()]


def _number(value: float) -> str:
    return LARGE.get(value, f"{value:g}".replace("-", "−"))


def _default(kind: str, required: bool, options: dict[str, Any]) -> str:
    if kind not in WIDGETS or options.get("forceInput"):
        return "required" if required else "optional"
    if "default" not in options:
        return ""  # the first of the list
    value = options["default"]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return _number(value)


def _brackets(name: str, kind: str, required: bool, options: dict[str, Any]) -> str:
    """Default and range of an input."""
    values = _range(name, kind, options)
    default = _default(kind, required, options)
    if default in ("required", "optional"):
        return f"{values}, {default}"
    return f"{default}; {values}" if default else values


def _range(name: str, kind: str, options: dict[str, Any]) -> str:
    limits = f"{_number(options['min'])} … {_number(options['max'])}" if "min" in options else ""
    if options.get("forceInput"):
        return ", ".join(filter(None, (kind, limits)))
    if kind == "COMBO":
        return "list" if name in OF_THE_MACHINE else ", ".join(options["options"])
    return {"INT": limits, "FLOAT": limits, "STRING": "text", "BOOLEAN": "false, true"}.get(kind, kind)


def test_every_node_has_a_page_and_every_page_a_node(rlg: SimpleNamespace) -> None:
    assert {page.stem for page in PAGES} == set(_nodes(rlg))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_lies_where_the_front_end_looks_first(page: Path) -> None:
    """It asks for <node>/<language>.md, then for <node>.md; a miss is an error in its console."""
    copy = page.with_suffix("") / "en.md"
    assert copy.is_file() and copy.read_bytes() == page.read_bytes(), f"copy {page.name} to {page.stem}/en.md"


def test_the_pages_know_every_input_with_its_default_and_range(rlg: SimpleNamespace) -> None:
    for node_id, node in _nodes(rlg).items():
        expected = []
        for group, inputs in node.INPUT_TYPES().items():
            if group in ("required", "optional"):
                for name, (kind, options) in inputs.items():
                    expected.append((name, _brackets(name, kind, group == "required", options)))
        assert [entry[:2] for entry in _list(_text(node_id), "Inputs")] == expected, node_id


def test_the_pages_know_every_output(rlg: SimpleNamespace) -> None:
    for node_id, node in _nodes(rlg).items():
        names = [output.display_name for output in node.GET_SCHEMA().outputs]
        found = [entry[:2] for entry in _list(_text(node_id), "Outputs")]
        assert found == list(zip(names, node.RETURN_TYPES, strict=True)), node_id


def test_the_pages_are_called_like_their_nodes(rlg: SimpleNamespace) -> None:
    for node_id, node in _nodes(rlg).items():
        assert _text(node_id).startswith(f"# {node.GET_SCHEMA().display_name}\n"), node_id


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=lambda page: page.stem)
def test_every_picture_can_be_opened(page: Path) -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        Image.open(page.parent / picture).verify()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_is_a_whole_address(page: Path) -> None:
    """The help panel opens them as they are, beside its own address. That they lead somewhere, test_docs holds."""
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://"), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_a_picture_and_related_nodes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "](images/" in text and "## Related\n" in text and "## Pitfalls\n" in text
    assert "\n|---" not in text, "a table does not fit in the help panel"


def test_no_picture_is_there_for_nothing_and_all_are_small() -> None:
    for folder, pages, limit in ((HELP, PAGES, 1_500_000), (GUIDE, GUIDES, 600_000)):
        pictures = [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg")]
        text = "".join(page.read_text(encoding="utf-8") for page in pages)
        assert [picture.name for picture in pictures if f"/{picture.name})" not in text] == []
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < limit


MODULES = {path.stem: path for path in (REPO / "rlg_sampler").rglob("*.py")}
MODULES |= {f"nodes.{path.stem}": path for path in (REPO / "nodes").glob("*.py")}
_FILE = re.compile(r"[\w/]+\.py\b")
_SYMBOL = re.compile(r"(?<![\w./])((?:nodes\.|comfy\.)?[a-z_]\w*)\.([A-Za-z_]\w*(?:\.\w+)*)")


def _symbols(path: Path) -> set[str]:
    """What a module defines: functions, classes and constants, and of classes their methods and attributes."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= _defined(node, "")
        if isinstance(node, ast.ClassDef):
            found |= {name for inner in node.body for name in _defined(inner, f"{node.name}.")}
    return found


def _defined(node: ast.stmt, prefix: str) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {prefix + node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [name for target in targets if target is not None for name in ast.walk(target)]
    return {prefix + name.id for name in names if isinstance(name, ast.Name)}


def test_how_it_works_names_what_there_is(rlg: SimpleNamespace) -> None:
    """Files exist, and what is named of a module is defined there; those of others are imported."""
    text = GUIDES[1].read_text(encoding="utf-8")
    files, symbols = _FILE.findall(text), _SYMBOL.findall(_FILE.sub("", text))
    assert len(files) > 5 and len(symbols) > 40
    for file in files:
        assert (REPO / file).is_file(), file
    for module, symbol in symbols:
        if module in MODULES:
            assert symbol in _symbols(MODULES[module]), f"{module}.{symbol}"
        else:
            assert hasattr(importlib.import_module(module), symbol), f"{module}.{symbol}"


def test_every_picture_is_made_by_the_guide_s_command_or_is_a_workflow_s() -> None:
    """So that all of them can be renewed when the demo's pair changes."""
    from demo import guide

    found = {path for folder in (GUIDE, HELP / "images") for path in folder.iterdir()}
    found |= {*(REPO / "workflows").glob("*.jpg"), *(REPO / "docs").glob("*.jpg")}
    thumbnails = {path.read_bytes() for path in (REPO / "workflows").glob("*.jpg")}
    assert set(guide.FIGURES) <= found
    others = found - set(guide.FIGURES)
    assert [path.name for path in others if path.read_bytes() not in thumbnails] == []


def _text(node_id: str) -> str:
    return (HELP / f"{node_id}.md").read_text(encoding="utf-8")
