"""The README and the pages in docs/: links lead somewhere, the site builds, nodes go by their own names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from PIL import Image

from packed import REPO, packed_files, repository_files

README = REPO / "README.md"
HELP = Path("web", "docs")
# Without the copies of help pages, whose pictures the front end takes from the folder above.
PAGES = [path for path in repository_files() if path.suffix == ".md" and path.parent.parent != HELP]
REPOSITORY = re.compile(
    r"https://(?:github\.com/comfyui-rlg/comfyui-rlg/(?:blob|tree)|raw\.githubusercontent\.com/comfyui-rlg/comfyui-rlg)/main/"
)
_CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(text: str) -> Iterator[str]:
    """The targets of all links and pictures outside of code."""
    yield from _LINK.findall(_CODE.sub("", text))


def file_of(link: str, page: Path) -> tuple[Path, str] | None:
    """Where in the repository a link of `page` leads, and to which anchor; None: elsewhere."""
    path, _, anchor = unquote(link).partition("#")
    if match := REPOSITORY.match(path):
        return REPO / path[match.end() :], anchor
    if ":" in path:
        return None
    return (page.parent / path if path else page), anchor


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in words}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](b.md) and ![c](d.png)", ["b.md", "d.png"]),
        ("[a\nb](c.md#d)", ["c.md#d"]),
        ("`[a](b.md)`", []),
        ("```\n[a](b.md)\n```\n", []),
        ("text\n\n    [a](b.md)\n", []),
    ],
)
def test_links_are_found(text: str, found: list[str]) -> None:
    assert list(links(text)) == found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.as_posix())
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for link in links((REPO / page).read_text(encoding="utf-8")):
        if target := file_of(link, REPO / page):
            path, anchor = target
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.as_posix())
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """In SECURITY.md they hold the promises."""
    for name in re.findall(r"tests/[\w/]+\.py", (REPO / page).read_text(encoding="utf-8")):
        assert (REPO / name).exists(), name


def test_every_promise_of_security_is_held_by_a_test_or_by_the_host() -> None:
    rows = re.findall(r"^\| .+ \| (.+) \|$", (REPO / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows.pop(0) == "held by"
    for held_by in rows:
        assert "`tests/" in held_by or held_by in ("the same", "ComfyUI"), held_by


def test_readme_leads_somewhere_from_the_archive_too() -> None:
    """The registry and ComfyUI-Manager show the packed README, which has no docs/ beside it."""
    packed = {REPO / path for path in packed_files()}
    for link in links(README.read_text(encoding="utf-8")):
        assert link.startswith("https://") or file_of(link, README)[0] in packed, link


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a dead link or anchor, or a page that the table of contents lacks, is an error."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: `python dev.py test` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_name_every_node_as_it_is_called(rlg: SimpleNamespace) -> None:
    text = (REPO / "docs" / "nodes.md").read_text(encoding="utf-8")
    found = {
        node_id: name for name, node_id in re.findall(r"^\| \[([^\]]+)\]\(\S+\) \| `(\w+)` \|", text, re.MULTILINE)
    }
    names = {
        node_id: node.GET_SCHEMA().display_name for node_id, node in rlg.nodes.items() if node_id.startswith("RLG")
    }
    assert found == names
    five = re.findall(r"^\| \*\*(.+?)\*\* \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(five) == 5 and set(five) <= set(names.values())


def test_the_messages_of_troubleshooting_are_the_code_s() -> None:
    """So that whoever searches the page for the words on the screen finds them."""
    text = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    _, *tables = text.split("| message | what to do |\n|---|---|\n")
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines() if row.startswith("| ")]
    said = " ".join(_texts())
    for message in re.findall(r"`([^`]+)`", " ".join(cells)):
        for words in message.split("…"):
            assert words.strip() in said, message


def _texts() -> Iterator[str]:
    """The texts in our code; of an f-string what stands between its values."""
    for path in repository_files():
        if path.suffix == ".py" and path.parts[0] not in ("tests", "demo", "benchmarks", ".github"):
            for node in ast.walk(ast.parse((REPO / path).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_registry_gets_an_icon_and_a_banner() -> None:
    """As docs.comfy.org/registry/specifications asks: at most 800 × 400; shown square, and 21 : 9."""
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    urls = [re.search(rf'^{name} = "(.+)"$', text, re.MULTILINE)[1] for name in ("Icon", "Banner")]
    assert all(url.startswith("https://raw.githubusercontent.com/") for url in urls)
    icon, banner = (Image.open(file_of(url, README)[0]).size for url in urls)
    assert icon[0] == icon[1] <= 400
    assert banner[0] * 9 == banner[1] * 21 and banner[0] <= 800
