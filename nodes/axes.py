"""Nodes that say what a sweep compares besides scales and switch points."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import Any

from comfy_api.v0_0_2 import io

from ..rlg_sampler.sweeps.axes import LORA, RANGES, Axis, number_axis, within
from ..rlg_sampler.weights.lora_file import load_lora
from .loaders import lora_names, lora_path, written
from .search import search_aliases

AxisType = io.Custom("RLG_AXIS")

_NONE = "none"


def axis_input(tooltip: str) -> io.Input:
    return AxisType.Input("axis", optional=True, tooltip=tooltip)


class RLGAxis(io.ComfyNode):
    """Numbers of one setting, for RLGSweep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGAxis",
            display_name="RLG Axis",
            category="RLG",
            description="One more axis for RLG Sweep: seeds, CFG, or how late a ramp rises, each with all scales.",
            **search_aliases("xy plot", "xyz plot", "compare seeds", "compare cfg"),
            inputs=[
                io.Combo.Input(
                    "vary",
                    options=list(RANGES),
                    default="seed",
                    tooltip="What changes; the axis takes the place of RLG Sweep's own setting. seed = other noise, "
                    "cfg and tuned_cfg = guidance by the prompt, power = a ramp from 0 to each scale with this "
                    "exponent (RLG Ramp).",
                ),
                io.String.Input(
                    "values",
                    default="0..3/4",
                    tooltip="Its values, separated by commas, such as 42, 43, 44. Ranges: 1:7:2 (start:end:step), "
                    "0..3/4 (four values). Each value costs one picture for every scale.",
                ),
                _outer_input(),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, vary: str, values: str, axis: tuple[Axis, ...] = ()) -> io.NodeOutput:
        return io.NodeOutput(within(axis, number_axis(vary, values)))


class RLGLoraAxis(io.ComfyNode):
    """Tuned models of one base, for RLGSweep."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names, another = lora_names(), "One more LoRA to compare; none = no more."
        return io.Schema(
            node_id="RLGLoraAxis",
            display_name="RLG LoRA Axis",
            category="RLG",
            description="One more axis for RLG Sweep: several RL-tuned LoRAs of one base model, each with all scales.",
            **search_aliases("xy plot", "compare loras", "compare models"),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL that the LoRAs were trained on: the same as RLG Sweep's base."
                ),
                io.Combo.Input(
                    "lora_1",
                    options=names,
                    tooltip="The first LoRA, at its trained strength. The axis takes the place of RLG Sweep's tuned.",
                ),
                io.Combo.Input("lora_2", options=[_NONE, *names], default=_NONE, tooltip=another),
                io.Combo.Input("lora_3", options=[_NONE, *names], default=_NONE, tooltip=another),
                io.Combo.Input("lora_4", options=[_NONE, *names], default=_NONE, tooltip=another),
                _outer_input(),
            ],
            outputs=[_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return written(*(value for name, value in inputs.items() if name.startswith("lora_")))

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        lora_1: str,
        lora_2: str,
        lora_3: str,
        lora_4: str,
        axis: tuple[Axis, ...] = (),
    ) -> io.NodeOutput:
        chosen = [name for name in (lora_1, lora_2, lora_3, lora_4) if name != _NONE]
        models = [load_lora(model, lora_path(name), name, 1.0)[0] for name in dict.fromkeys(chosen)]
        return io.NodeOutput(within(axis, Axis(LORA, tuple(models), tuple(short_names(chosen)))))


def short_names(loras: list[str]) -> list[str]:
    """What labels call each of different LoRAs: the file's name alone where that is enough, and no comma in it."""
    plain = {name: name.replace(",", "") for name in loras}
    stems = {name: PurePath(text.replace("\\", "/")).name.removesuffix(".safetensors") for name, text in plain.items()}
    count = Counter(stems.values())
    short = [stem if count[stem] == 1 else plain[name] for name, stem in stems.items()]
    # Without their commas two may be called the same.
    return [name if short.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(short, start=1)]


def _outer_input() -> io.Input:
    return axis_input("Another axis around this one: all combinations are sampled. Not connected = this one alone.")


def _output() -> io.Output:
    return AxisType.Output(display_name="axis", tooltip="For axis of RLG Sweep, or of another axis.")
