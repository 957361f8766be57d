"""What nodes tell the page while they run, besides their outputs."""

from __future__ import annotations

import logging
import sys
from typing import Any

from comfy_execution.utils import get_executing_context

WARNING = "rlg_warning"
"""The message of the server that `web/messages.js` listens to."""
_PREFIX = "RLG: "
"""Of lines in the log; in a node it is clear who speaks."""


def running_node() -> str | None:
    """Id in the prompt of the node that runs, or that was expanded to it; None outside of the host's executor."""
    context = get_executing_context()
    # The host calls parts of an expanded node by its id, a dot and more; pages know no dots.
    return None if context is None else context.node_id.partition(".")[0]


def running_server() -> Any:
    """The host's PromptServer, if there is one."""
    # Not imported: a ComfyUI without a server, in a script or a test, has no need of all that its module brings.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def send(event: str, data: dict[str, Any]) -> None:
    """A message to the page that queued the prompt, if there is one, with what tells its runs apart.

    Added to the data: `prompt`, the run's id, and `workflow`, that of its graph if the page gave it one. The page may
    show another workflow by now, whose nodes have the same ids.
    """
    server = running_server()
    if server is not None and server.client_id is not None:  # without an id it would go to every page
        context = get_executing_context()
        prompt = None if context is None else context.prompt_id
        server.send_sync(event, {**data, "prompt": prompt, "workflow": _workflow(server, prompt)}, server.client_id)


def _workflow(server: Any, prompt: str | None) -> str | None:
    """Id of the graph that a running prompt was made of."""
    queue = getattr(server, "prompt_queue", None)
    running = [] if queue is None else [item for item in queue.currently_running.values() if item[1] == prompt]
    graph = (running[0][3].get("extra_pnginfo") or {}).get("workflow") if running else None
    return graph.get("id") if isinstance(graph, dict) else None


class _InTheNode(logging.Handler):
    """Shows what the extension warns of in the node that runs: few users see the log."""

    def emit(self, record: logging.LogRecord) -> None:
        node = running_node()
        if node is not None:
            send(WARNING, {"node": node, "sentence": record.getMessage().removeprefix(_PREFIX)})


def show_warnings_in_nodes() -> None:
    """From now on, all warnings of the extension's loggers are seen in the node that they are about."""
    package = __package__.rpartition(".")[0]
    logging.getLogger(package).addHandler(_InTheNode(logging.WARNING))
