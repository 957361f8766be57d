"""What the registry gets: comfy-cli's own checks, the archive that it packs, and a clean ComfyUI that takes it.

comfy-cli runs as it is, without telemetry and with every way to the network shut.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo.server import comfy_server
from demo.ui_to_api import to_prompt
from model_files import write_empty_models
from packed import REPO, copy_files, packed_files, repository_files
from project import CHANGELOG, VERSION, release_notes

HOST = Path(os.environ["COMFYUI_PATH"])
WORKFLOWS = sorted((REPO / "workflows").glob("*.json"))
PACKAGES = ("files", "nodes", "plots", "rewards", "rlg_sampler", "training")
FOR_THE_HOST = (*PACKAGES, "workflows", "web", "locales", "subgraphs")
RUN_FROM_A_CLONE = ("training/__main__.py", "training/program/")
AS_MANAGER_INSTALLS_IT = "rl-guidance"

INSTALL_SCRIPTS = {"install.py", "uninstall.py", "enable.py", "disable.py", "prestartup_script.py"}
"""Run by ComfyUI-Manager or the host."""

# What can start a program, open a connection, or run what it reads.
MODULES_FOR_THAT = {
    *("subprocess", "multiprocessing", "pty", "ctypes", "code", "codeop", "runpy", "importlib"),
    *("socket", "socketserver", "ssl", "asyncio", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "webbrowser"),
    *("requests", "httpx", "aiohttp", "urllib3", "websocket", "websockets", "huggingface_hub"),
    *("pip", "ensurepip", "venv", "setuptools", "pickle", "cPickle", "marshal", "shelve", "dill", "joblib"),
}
CALLS_FOR_THAT = {"eval", "exec", "compile", "__import__"}
METHODS_FOR_THAT = re.compile(
    r"(os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|fork\w*|startfile)"
    r"|torch\.hub\.\w+|torch\.utils\.model_zoo\.\w+|torch\.jit\.load|snapshot_download|hf_hub_download)"
)
IN_JAVASCRIPT = re.compile(r"\beval\s*\(|\bnew\s+Function\b|\bimportScripts\b|XMLHttpRequest|WebSocket|sendBeacon")


def comfy(folder: Path, home: Path, *arguments: str) -> str:
    """What comfy-cli, run in `folder`, says; it must succeed."""
    nowhere = "http://127.0.0.1:9"  # the discard port: a connection fails at once
    environment = {"HOME": home, "USERPROFILE": home, "DO_NOT_TRACK": "1", "PYTHONUTF8": "1"}
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), nowhere)
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", *arguments],
        cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For comfy-cli's configuration."""
    pytest.importorskip("comfy_cli", reason="comfy-cli is not installed: `python dev.py test` installs it")
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files as they would be after a commit, apart from the repository: packing writes beside them."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_files(repository_files(), folder)
    return folder


@pytest.fixture(scope="module")
def archive(checkout: Path, home: Path) -> Iterator[zipfile.ZipFile]:
    """What is published."""
    comfy(checkout, home, "node", "pack")
    with zipfile.ZipFile(checkout / "node.zip") as file:
        yield file


# --- What comfy-cli says ----------------------------------------------------------------------------------------


def test_node_validate_finds_nothing(checkout: Path, home: Path) -> None:
    said = comfy(checkout, home, "node", "validate")
    assert "All validation checks passed" in said
    assert "warning" not in said.lower()


def test_archive_is_the_list_that_the_other_tests_install(archive: zipfile.ZipFile) -> None:
    assert sorted(archive.namelist()) == sorted(path.as_posix() for path in packed_files())


# --- What is in the archive -------------------------------------------------------------------------------------


def test_archive_is_small_and_holds_only_the_extension(archive: zipfile.ZipFile) -> None:
    """No tests, training code, demo, caches or tools; below the 15 MB that we promise."""
    allowed = {
        *FOR_THE_HOST,
        "__init__.py",
        "pyproject.toml",
        "requirements.txt",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    }
    assert {name.split("/")[0] for name in archive.namelist()} <= allowed
    assert not [name for name in archive.namelist() if "__pycache__" in name or name.endswith((".pyc", ".log", ".tmp"))]
    assert Path(archive.filename).stat().st_size < 15e6
    assert sum(entry.file_size for entry in archive.infolist()) < 15e6


def test_archive_lacks_nothing_that_the_host_reads(archive: zipfile.ZipFile, checkout: Path) -> None:
    files = [path for name in FOR_THE_HOST for path in (checkout / name).rglob("*") if path.is_file()]
    needed = {path.relative_to(checkout).as_posix() for path in files} | {"__init__.py", "pyproject.toml", "LICENSE"}
    assert {name for name in needed if not name.startswith(RUN_FROM_A_CLONE)} <= set(archive.namelist())
    assert not [name for name in archive.namelist() if name.startswith(RUN_FROM_A_CLONE)]


def test_nothing_runs_on_installation(archive: zipfile.ZipFile) -> None:
    assert not {Path(name).name for name in archive.namelist()} & INSTALL_SCRIPTS


def test_matplotlib_is_all_that_is_installed_with_the_extension(archive: zipfile.ZipFile) -> None:
    """The registry shows what pyproject.toml asks for; ComfyUI-Manager and comfy-cli install from requirements.txt."""
    wanted = [line for line in archive.read("requirements.txt").decode().splitlines() if not line.startswith("#")]
    assert wanted == ["matplotlib>=3.8"]
    assert re.search(r"^dependencies = (\[.*\])", archive.read("pyproject.toml").decode(), re.M)[1] == json.dumps(
        wanted
    )


def _offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES_FOR_THAT)
        elif isinstance(node, ast.Name) and node.id in CALLS_FOR_THAT:
            yield node.id
        elif isinstance(node, ast.Attribute) and METHODS_FOR_THAT.fullmatch(ast.unparse(node)):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load" and options.get("weights_only") != "True":
                yield "torch.load of a file that may hold code"
            if node.func.attr == "from_pretrained" and options.get("local_files_only") != "True":
                yield "from_pretrained that may download"
            if "trust_remote_code" in options:
                yield "trust_remote_code"


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "f = exec",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import subprocess",
        "def f():\n    from urllib.request import urlopen",
        "import os\nos.system(text)",
        "import os\nos.execvp(a, b)",
        "import torch\ntorch.hub.load(a)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "Model.from_pretrained(name)",
        "Model.from_pretrained(name, local_files_only=True, trust_remote_code=True)",
    ],
)
def test_offences_are_found(code: str) -> None:
    assert list(_offences(ast.parse(code)))


def test_no_python_file_starts_a_process_opens_a_connection_or_runs_what_it_reads(archive: zipfile.ZipFile) -> None:
    """The registry's standards (docs.comfy.org/registry/standards): no eval or exec, no installing at run time."""
    sources = [name for name in archive.namelist() if name.endswith(".py")]
    assert len(sources) > 50
    found = {name: list(_offences(ast.parse(archive.read(name)))) for name in sources}
    assert not {name: offences for name, offences in found.items() if offences}


def test_no_script_of_the_front_end_does_either(archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        if name.endswith((".js", ".mjs")):
            code = archive.read(name).decode()
            assert not IN_JAVASCRIPT.search(code), name
            # Requests go to the user's own server, through the host's api object.
            assert not re.search(r"(?:fetch|import|from)\s*\(?\s*[\"'`]https?:", code), name
            assert max(map(len, code.splitlines()), default=0) < 400, f"{name}: obfuscated, or looks like it"


# --- A clean ComfyUI with the archive ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(archive: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server that has nothing but the archive, in the folder that ComfyUI-Manager gives it."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "models").mkdir()

    def unpack(custom_nodes: Path) -> None:
        archive.extractall(custom_nodes / AS_MANAGER_INSTALLS_IT)

    with comfy_server(HOST, folder / "models", folder / "server.log", install=unpack) as client:
        yield SimpleNamespace(client=client, models=folder / "models", log=folder / "server.log")


@pytest.mark.slow
def test_clean_comfyui_takes_every_node_of_the_archive(installed: SimpleNamespace) -> None:
    promised = json.loads((REPO / "tests" / "schema.json").read_text(encoding="utf-8"))
    assert {name for name in installed.client.object_info() if name.startswith("RLG")} == promised.keys()
    log = installed.log.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log and "IMPORT FAILED" not in log


@pytest.mark.slow
def test_comfy_workflow_validate_takes_every_bundled_workflow(
    installed: SimpleNamespace, home: Path, tmp_path: Path
) -> None:
    """As files, against what a server with the models of the README says about its nodes."""
    workflows = {path: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    before = installed.client.object_info()
    write_empty_models(installed.models, [to_prompt(workflow, before) for workflow in workflows.values()])
    info = tmp_path / "object_info.json"
    info.write_text(json.dumps(installed.client.object_info()), encoding="utf-8")
    for path in workflows:
        options = ["--workflow", str(path), "--input", str(info), "--where", "local"]
        assert '"warning_count": 0' in comfy(tmp_path, home, "workflow", "validate", *options), path


# --- Releases ---------------------------------------------------------------------------------------------------


EXAMPLE = """# Changelog

## [1.1.0] - 2026-02-03

### Added

- A thing.

## [1.0.0] - 2026-01-02

- First.

## [0.9.0] - Unreleased

- Not yet.

[1.0.0]: https://example.org
"""


def test_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    assert release_notes.notes("v1.1.0", "1.1.0", EXAMPLE) == "### Added\n\n- A thing."
    assert release_notes.notes("v1.0.0", "1.0.0", EXAMPLE) == "- First."


@pytest.mark.parametrize(
    ("tag", "version", "words"),
    [
        ("v1.2.0", "1.1.0", "pyproject.toml"),
        ("1.1.0", "1.1.0", "v1.1.0"),
        ("v1.2.0", "1.2.0", "no section"),
        ("v0.9.0", "0.9.0", "Unreleased"),
        ("v1.1", "1.1", "three numbers"),
    ],
)
def test_a_tag_that_must_not_be_published_is_one_sentence(tag: str, version: str, words: str) -> None:
    with pytest.raises(SystemExit, match=words) as caught:
        release_notes.notes(tag, version, EXAMPLE)
    assert "\n" not in str(caught.value)


def test_version_is_semantic_and_everywhere_the_same() -> None:
    assert release_notes.is_semantic(VERSION)
    assert re.search(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)[1] in (VERSION, "Unreleased")
    assert f"\nversion: {VERSION}\n" in (REPO / "CITATION.cff").read_text(encoding="utf-8")
