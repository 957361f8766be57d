"""The part of a ComfyUI server's interface that the demo needs: run a prompt, watch it, fetch its pictures."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import aiohttp

Json = dict[str, Any]
OnProgress = Callable[[int, int], None]
"""Called with (step, steps) after each sampling step."""

TIMEOUT = 60.0
"""Seconds for one request. Runs have no limit: they are waited for on the WebSocket."""

# The server is on this machine: a proxy from the environment does not lead to it.
_open = build_opener(ProxyHandler({})).open


class PromptError(RuntimeError):
    """The server did not run the prompt to its end; the message is what a user reads in the front end."""


class PromptRejected(PromptError):
    """Refused before it ran: an input does not fit its node."""


class PromptFailed(PromptError):
    """A node raised an error."""


class PromptInterrupted(PromptError):
    """Cancelled."""


class ConnectionLost(ConnectionError):
    """The server does not answer (any more)."""


class ComfyClient:
    """A running server, by its address, such as http://127.0.0.1:8188."""

    def __init__(self, address: str):
        self.address = address

    def system_stats(self) -> Json:
        return self._request("/system_stats")

    def object_info(self) -> dict[str, Json]:
        """Every node the server knows: its inputs with types and options, its outputs."""
        return self._request("/object_info")

    def interrupt(self) -> None:
        """Cancel what runs now; its `run` raises PromptInterrupted."""
        self._request("/interrupt", body={})

    def run(self, prompt: Json, workflow: Json | None = None, on_progress: OnProgress | None = None) -> list[bytes]:
        """The PNG files of all nodes of a prompt (see `outputs`)."""
        return [png for pngs in self.outputs(prompt, workflow, on_progress).values() for png in pngs]

    def outputs(
        self, prompt: Json, workflow: Json | None = None, on_progress: OnProgress | None = None
    ) -> dict[str, list[bytes]]:
        """Queue an API prompt, wait for its end, and return the PNG files it made, by the node that made them.

        `workflow`: the UI workflow to write into the pictures, as the front end does.

        Raises:
            PromptRejected, PromptFailed, PromptInterrupted: it did not run to its end.
            ConnectionLost: the server stopped in the middle.
        """
        try:
            history = asyncio.run(self._run(prompt, workflow, on_progress or (lambda step, steps: None)))
        except aiohttp.ClientConnectionError as error:
            raise ConnectionLost(f"the ComfyUI server at {self.address} does not answer.") from error
        _raise_for_status(history["status"])
        return {
            node: [self._image(image) for image in output.get("images", [])]
            for node, output in history["outputs"].items()
        }

    async def _run(self, prompt: Json, workflow: Json | None, on_progress: OnProgress) -> Json:
        """The prompt's entry in the server's history, once it has ended in any way."""
        client_id = uuid.uuid4().hex
        body: Json = {"prompt": prompt, "client_id": client_id}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        async with (
            aiohttp.ClientSession(self.address) as http,
            http.ws_connect("/ws", params={"clientId": client_id}, max_msg_size=0) as messages,
        ):
            async with http.post("/prompt", json=body) as response:
                answer = await response.json()
                if response.status != 200:
                    raise PromptRejected(_rejection(answer))
            prompt_id = answer["prompt_id"]
            async for message in messages:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = message.json()
                data = event["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                if event["type"] == "progress":
                    on_progress(data["value"], data["max"])
                elif event["type"] == "executing" and data["node"] is None:
                    async with http.get(f"/history/{prompt_id}") as response:
                        return (await response.json())[prompt_id]
        raise aiohttp.ServerDisconnectedError

    def _image(self, image: Json) -> bytes:
        return self._open_path(f"/view?{urlencode(image)}")

    def _request(self, path: str, body: Json | None = None) -> Any:
        answer = self._open_path(path, body)
        return json.loads(answer) if answer else None

    def _open_path(self, path: str, body: Json | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.address + path, data=data, headers={"Content-Type": "application/json"})
        try:
            with _open(request, timeout=TIMEOUT) as response:
                return response.read()
        except HTTPError:
            raise
        except OSError as error:
            raise ConnectionLost(f"the ComfyUI server at {self.address} does not answer.") from error


def _rejection(answer: Json) -> str:
    """One line for a refused prompt: the first input that does not fit, else what the server says of the whole."""
    for node in answer.get("node_errors", {}).values():
        for error in node["errors"]:
            return f"{node['class_type']}: {error['message']}: {error['details']}"
    error = answer["error"]
    return f"{error['message']} {error['details']}".strip()


def _raise_for_status(status: Json) -> None:
    for event, data in status["messages"]:
        if event == "execution_interrupted":
            raise PromptInterrupted("the run was cancelled.")
        if event == "execution_error":
            raise PromptFailed(f"{data['node_type']}: {data['exception_message'].strip()}")
