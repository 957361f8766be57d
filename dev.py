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
import os
import signal
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":  # a Python in isolated mode, such as Windows' embeddable one, does not look beside a script
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment.cache import cache_folder
from environment.lock_file import refresh_lock
from environment.messages import SetupError, say
from environment.requirements import REPO
from environment.set_up import set_up

HERE = Path(__file__).absolute().parent  # symbolic links kept: the extension may be linked into custom_nodes
MODULES = {
    "demo": "demo.run",
    "test": "pytest",
    "evaluate": "demo.evaluate",
    "bench": "benchmarks.run",
    "train": "demo.train",
}
COMMANDS = (*MODULES, "lock")

INTERRUPTED = 130
"""The exit code that shells give a program ended by Ctrl-C."""


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
        host, python = set_up(option, cache, HERE)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
