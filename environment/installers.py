"""Installers: their progress on the screen, their words in a log, and why one failed in a line."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from environment.messages import SetupError, say
from environment.processes import OWN_GROUP, kill_group


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
