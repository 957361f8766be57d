"""The host's own routes for what an extension brings beside its nodes, asked over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import folder_paths
import nodes as host_nodes
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from app.custom_node_manager import CustomNodeManager
from app.subgraph_manager import SubgraphManager


def served(pack: str, *paths: str) -> list[bytes]:
    """What the host answers to GET `paths`, with the extension `pack` (loaded before) as its only custom node.

    Raises:
        aiohttp.ClientResponseError: one of the answers is an error.
    """
    installed = Path(host_nodes.LOADED_MODULE_DIRS[pack])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(installed.parent)], set()))
        return asyncio.run(_get({pack: str(installed)}, paths))


async def _get(modules: dict[str, str], paths: tuple[str, ...]) -> list[bytes]:
    application, routes = web.Application(), web.RouteTableDef()
    CustomNodeManager().add_routes(routes, application, modules.items())
    SubgraphManager().add_routes(routes, modules.items())
    application.add_routes(routes)
    answers = []
    async with TestClient(TestServer(application), raise_for_status=True) as client:
        for path in paths:
            async with client.get(path) as answer:
                answers.append(await answer.read())
    return answers
