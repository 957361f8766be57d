"""Nodes that load a base model and the LoRA that RL-tuned it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.validation import validate_node_input

from ..rlg_sampler.messages import shown
from ..rlg_sampler.weights.lora_file import load_lora
from ..rlg_sampler.weights.peft_config import CONFIG_NAME, WEIGHTS_NAME
from .inputs import answer, text_output
from .search import search_aliases

_STRENGTH_TOOLTIP = (
    "1.0 = as trained, also for PEFT adapters, whose scale the stock loader leaves out. "
    "0 = no LoRA, so nothing to guide. Leave it at 1.0 and steer with scale."
)


class _LoraLoader(io.ComfyNode):
    """Loads the LoRA that its input `lora_name` names."""

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None, input_types: Mapping[str, str] | None = None) -> bool | str:
        """In place of the list of names: workflows may name the file in an adapter's folder, or link a text.

        Args:
            input_types: of the links. The host does not compare them itself where a node asks for them.
        """
        takes = {each.id: [each.get_io_type()] for each in cls.define_schema().inputs}
        takes["lora_name"].append(io.String.io_type)
        for name, given in (input_types or {}).items():
            if not any(validate_node_input(given, kind) for kind in takes[name]):
                return f"{name}: it takes {' or '.join(takes[name])} and gets {shown(given)}; connect another output."
        return answer(lora_path, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: Any) -> str:
        return written(lora_name)


class RLGLoadLora(_LoraLoader):
    """A LoRA on a MODEL, at the strength its trainer meant."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGLoadLora",
            display_name="RLG Load LoRA",
            category="RLG",
            description="Loads an RL-tuned LoRA (PEFT folder or file, diffusers, kohya) at its trained strength.",
            **search_aliases("rl lora", "flow-grpo", "flow grpo", "peft", "lora adapter", "lora loader"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL that the LoRA was trained on. Connect it to 'base' of the RLG node as well.",
                ),
                _lora_input(),
                _strength_input("strength"),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The tuned MODEL, for 'tuned' of the RLG nodes."),
                _report_output(),
            ],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, lora_name: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(*load_lora(model, lora_path(lora_name), lora_name, strength))


class RLGLoadModels(_LoraLoader):
    """A checkpoint and its RL LoRA as a ready pair."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGLoadModels",
            display_name="RLG Load Models",
            category="RLG",
            description="Loads a checkpoint and an RL-tuned LoRA for it: the pair for the RLG samplers, "
            "with one copy of the weights.",
            enable_expand=True,
            **search_aliases(
                "reinforcement learning guidance",
                "rl lora",
                "flow-grpo",
                "flow grpo",
                "checkpoint and lora",
                "load pair",
            ),
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=folder_paths.get_filename_list("checkpoints"),
                    tooltip="The base model, from models/checkpoints.",
                ),
                _lora_input(),
                _strength_input("lora_strength"),
            ],
            outputs=[
                io.Model.Output(display_name="base", tooltip="The checkpoint as it is."),
                io.Model.Output(display_name="tuned", tooltip="The checkpoint with the LoRA."),
                io.Clip.Output(display_name="CLIP", tooltip="The checkpoint's text encoders, without the LoRA."),
                io.Vae.Output(display_name="VAE", tooltip="The checkpoint's VAE."),
                _report_output(),
            ],
        )

    @classmethod
    def execute(cls, ckpt_name: str, lora_name: str, lora_strength: float) -> io.NodeOutput:
        # As two nodes, whose results the host keeps each: another LoRA or strength does not load the checkpoint anew.
        graph = GraphBuilder()
        checkpoint = graph.node("CheckpointLoaderSimple", ckpt_name=ckpt_name)
        base, clip, vae = map(checkpoint.out, range(3))
        lora = graph.node("RLGLoadLora", model=base, lora_name=lora_name, strength=lora_strength)
        return io.NodeOutput(base, lora.out(0), clip, vae, lora.out(1), expand=graph.finalize())


def _lora_input() -> io.Combo.Input:
    return io.Combo.Input(
        "lora_name",
        options=lora_names(),
        tooltip="The RL-tuned LoRA, from models/loras: a file, or a PEFT folder "
        f"({WEIGHTS_NAME} with its {CONFIG_NAME}), shown by the folder's name.",
    )


def _report_output() -> io.String.Output:
    return text_output("report", "What was matched: modules, rank, alpha, what was left out.")


def _strength_input(name: str) -> io.Float.Input:
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, round=0.001, tooltip=_STRENGTH_TOOLTIP)


def lora_names() -> list[str]:
    """Every LoRA file; a folder that holds a PEFT adapter stands for its file."""
    return sorted(
        str(Path(name).parent) if _is_in_a_folder_of_its_own(name) else name
        for name in folder_paths.get_filename_list("loras")
    )


def _is_in_a_folder_of_its_own(name: str) -> bool:
    return (
        Path(name).name == WEIGHTS_NAME
        and bool(Path(name).parent.name)
        # The host lists links that lead nowhere, and has no path for them.
        and (path := folder_paths.get_full_path("loras", name)) is not None
        and Path(path).with_name(CONFIG_NAME).is_file()
    )


def lora_path(name: str) -> Path:
    inside = folder_paths.get_full_path("loras", str(Path(name) / WEIGHTS_NAME))
    path = inside or folder_paths.get_full_path("loras", name)
    if path is None:
        raise ValueError(f"lora_name: '{shown(name)}' is not in models/loras; put it there, press R, choose it again.")
    return Path(path)


def written(*names: str | None) -> str:
    """When the files of LoRAs were written: RLG Train LoRA replaces its own, and what was loaded is old then.

    Args:
        names: from the list; None where they come through a link, and are not known yet.
    """
    files = [file for name in names if name for file in _files(name)]
    return " ".join(f"{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)


def _files(name: str) -> list[Path]:
    try:
        path = lora_path(name)
    except ValueError:  # which is said when it is loaded
        return []
    return [file for file in (path, path.with_name(CONFIG_NAME)) if file.is_file()]
