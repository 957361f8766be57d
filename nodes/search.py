"""Words under which the node search finds a node, besides its name."""

from __future__ import annotations

from comfy_api.v0_0_2 import io


def search_aliases(*words: str) -> dict[str, list[str]]:
    """The keyword `search_aliases` of io.Schema, for hosts that know it.

    ComfyUI 0.3.75 does not: there an unknown keyword raises TypeError, and all nodes of the extension are missing.
    """
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}
