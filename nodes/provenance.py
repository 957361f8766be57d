"""What made a picture, read from the prompt: names for titles, so that nothing says what is not so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from comfy_api.v0_0_2 import io

# Widgets that name a file, and the type of node where they do; None = any.
_MODELS = {"ckpt_name": None, "unet_name": None, "model_name": None}
_LORAS = {"lora_name": None, "name": "RLGTrainLora"}
_OF_SCORES = {"RLGScore": ("reward",), "RLGPickBest": ("scores",)}
"""Type of a node → its inputs that scores are made with; what made the pictures may have had a reward of its own."""
_SUFFIXES = (".safetensors", ".ckpt", ".sft", ".pt", ".gguf")

REWARD = "reward"
"""What scores are called where nobody says otherwise."""


def hidden_inputs() -> list[io.Hidden]:
    """What a node's schema has to ask for so that `title_of` and `reward_of` can be called for it.

    A list of its own for each: the host adds to it.
    """
    return [io.Hidden.prompt, io.Hidden.unique_id]


def title_of(node: type[io.ComfyNode], title: str, inputs: tuple[str, ...]) -> str:
    """The title that was written, or the names of the models and LoRAs that `inputs` of a running node come from.

    A title of spaces alone stands for none.
    """
    if title:
        return title.strip()
    above = _nodes_above(node, inputs)
    return " + ".join(dict.fromkeys([*_names(above, _MODELS), *_names(above, _LORAS)]))


def reward_of(node: type[io.ComfyNode], reward: str) -> str:
    """The reward's name that was written, or where none was, of what has made the node's scores."""
    if reward not in ("", REWARD):
        return reward
    above = _nodes_above(node, ("scores",), _OF_SCORES)
    names = [values["name"] for kind, values in above if kind == "RLGLoadReward" and isinstance(values["name"], str)]
    return " + ".join(dict.fromkeys(names)) or REWARD


def _nodes_above(
    node: type[io.ComfyNode], inputs: tuple[str, ...], only: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> list[tuple[str, Mapping[str, Any]]]:
    """Type and values of all that `inputs` of a node depend on; empty outside a server's run.

    Args:
        only: type of a node → the inputs of it to look behind; all of the others.
    """
    if node.hidden is None or not node.hidden.prompt:
        return []
    prompt = node.hidden.prompt
    own = prompt.get(str(node.hidden.unique_id), {}).get("inputs", {})
    return list(_above(prompt, [own.get(name) for name in inputs], only))


def _above(
    prompt: Mapping[str, Any], links: list[Any], only: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nodes that lead to these links, each once, the farthest first: a checkpoint before its LoRA."""
    seen: set[str] = set()

    def visit(link: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if not (isinstance(link, list) and len(link) == 2) or str(link[0]) in seen or str(link[0]) not in prompt:
            return
        seen.add(str(link[0]))
        entry = prompt[str(link[0])]
        for name, value in entry["inputs"].items():
            replaced = name == "tuned" and _compares_loras(prompt, entry["inputs"].get("axis"))
            if not replaced and name in only.get(entry["class_type"], (name,)):
                yield from visit(value)
        yield entry["class_type"], entry["inputs"]

    for link in links:
        yield from visit(link)


def _compares_loras(prompt: Mapping[str, Any], axis: Any) -> bool:
    """Whether an axis takes the place of a sweep's tuned model; its labels say which LoRA made a picture."""
    return any(kind == "RLGLoraAxis" for kind, _ in _above(prompt, [axis]))


def _names(nodes: list[tuple[str, Mapping[str, Any]]], widgets: Mapping[str, str | None]) -> list[str]:
    """File names without folder and suffix; a folder of an adapter by its own name."""
    found = []
    for kind, values in nodes:
        for name, of_kind in widgets.items():
            if of_kind in (None, kind) and isinstance(value := values.get(name), str):
                path = PurePosixPath(value.replace("\\", "/"))
                found.append(path.stem if path.suffix in _SUFFIXES else path.name)
    return found
