"""Nodes that make the scale depend on the progress of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from comfy_api.v0_0_2 import io, ui

from ..plots.figure import picture
from ..plots.schedule_curve import schedule_curve
from ..rewards.pixels import to_image
from ..rlg_sampler.schedules import schedule as schedules
from . import inputs
from .search import search_aliases

logger = logging.getLogger(__name__)


def _output() -> io.Output:
    return inputs.Schedule.Output(display_name="schedule", tooltip="For 'schedule' of the RLG sampling nodes.")


class _ScheduleNode(io.ComfyNode):
    """Makes a schedule from widgets, and shows it."""

    schedule: ClassVar[Callable[..., schedules.Schedule]]
    """Widgets → schedule."""

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        schedule = cls.schedule(**widgets)
        try:
            drawn = picture(schedule_curve(schedule))
        except ValueError as error:  # without its picture it is a schedule still
            logger.warning("RLG: %s", error)
            return io.NodeOutput(schedule)
        return io.NodeOutput(schedule, ui=ui.PreviewImage(to_image(np.array(drawn)[None])))


class RLGScale(_ScheduleNode):
    """A constant scale in a range of steps: interval guidance."""

    schedule = staticmethod(schedules.in_range)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGScale",
            display_name="RLG Scale in a Range",
            category="RLG/schedules",
            description="One scale in a range of steps, another one outside it (interval guidance).",
            **search_aliases(
                "interval guidance", "guidance interval", "guidance schedule", "schedule", "start end percent"
            ),
            inputs=[
                inputs.scale_input(),
                inputs.percent_input(
                    "start_percent", 0.0, "Where the range begins, as a fraction of the steps: 0 = the first step"
                ),
                inputs.percent_input(
                    "end_percent",
                    1.0,
                    "Where the range ends, as a fraction of the steps; the step at that position is outside it. "
                    "1 = the last step belongs to the range",
                ),
                inputs.scale_input(
                    "outside",
                    1.0,
                    "Scale outside the range: 1 = tuned model, 0 = base model; such a step evaluates one model only.",
                ),
            ],
            outputs=[_output()],
        )


class RLGCombinedGeneration(_ScheduleNode):
    """The base model first, the tuned one for the rest (ImageReFL, arXiv 2505.22569)."""

    schedule = staticmethod(schedules.combined_generation)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGCombinedGeneration",
            display_name="RLG Combined Generation",
            category="RLG/schedules",
            description="The base model makes the first steps, which keep variety; the tuned model finishes. "
            "With scale 1 each step evaluates one model only.",
            **search_aliases("imagerefl", "switch models", "two stage", "guidance schedule", "schedule"),
            inputs=[
                inputs.percent_input(
                    "switch_percent",
                    0.8,
                    "When the tuned model takes over, as a fraction of the steps: 0.8 = for the last fifth (32 of 40 "
                    "steps are the base's); 0 = the tuned model throughout, 1 = never",
                ),
                inputs.scale_input("scale", 1.0, "Scale from the switch on: 1 = the tuned model, above 1 = beyond it."),
            ],
            outputs=[_output()],
        )


class RLGRamp(_ScheduleNode):
    """A scale that rises or falls over the run; 0, 1, power is ImageReFL's annealed guidance."""

    schedule = staticmethod(schedules.ramp)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGRamp",
            display_name="RLG Ramp",
            category="RLG/schedules",
            description="Goes from one scale to another over the steps. From 0 to 1 with 'power' it is the annealed "
            "guidance of ImageReFL.",
            **search_aliases("annealed guidance", "imagerefl", "guidance schedule", "schedule", "curve"),
            inputs=[
                inputs.scale_input("start_scale", 0.0, "Scale at the first step: 0 = base model, 1 = tuned model."),
                inputs.scale_input("end_scale", 1.0, "Scale that the run goes to: 0 = base model, 1 = tuned model."),
                io.Combo.Input(
                    "curve",
                    options=["linear", "cosine", "power"],
                    default="linear",
                    tooltip="linear = evenly, cosine = slow at both ends, power = slow start (with an "
                    "exponent above 1).",
                ),
                io.Float.Input(
                    "power",
                    default=2.0,
                    min=0.05,
                    max=20.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Exponent of the curve 'power': 1 = linear, 2 to 5 = the change comes late, below 1 = "
                    "early. The other curves ignore it.",
                ),
            ],
            outputs=[_output()],
        )


class RLGKeyframes(_ScheduleNode):
    """A scale written down as positions and values."""

    schedule = staticmethod(schedules.keyframes)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGKeyframes",
            display_name="RLG Keyframes",
            category="RLG/schedules",
            description="Any schedule, written as pairs of position and scale.",
            **search_aliases("guidance schedule", "schedule", "custom curve"),
            inputs=[
                io.String.Input(
                    "keyframes",
                    default="0:0, 0.5:1, 0.8:2",
                    tooltip="position:scale pairs in rising order, separated by commas; position 0 = first step, 0.5 = "
                    "half of the steps. With 'step', each scale holds from its position on.",
                ),
                io.Combo.Input(
                    "interpolation",
                    options=["step", "linear"],
                    default="step",
                    tooltip="step = hold each scale until the next position, linear = go straight to the next scale.",
                ),
            ],
            outputs=[_output()],
        )


NODES: dict[str, type[_ScheduleNode]] = {
    node.__name__: node for node in (RLGScale, RLGCombinedGeneration, RLGRamp, RLGKeyframes)
}
"""By id."""
