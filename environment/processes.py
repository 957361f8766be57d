"""Processes that end with all they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

# Options of Popen: in a group of its own a process does not get our Ctrl-C; we end it, and all it started, in order.
OWN_GROUP: dict[str, object] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
)


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
