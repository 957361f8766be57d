"""Nodes that add guidance to a MODEL or make a GUIDER of it."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..rlg_sampler.guidance.approximation import EXACT, Approximation
from ..rlg_sampler.guidance.guided_model import RLGGuider, guided_model
from ..rlg_sampler.guidance.settings import AUTO
from ..rlg_sampler.schedules.schedule import Schedule
from . import inputs
from .search import search_aliases


class RLGModel(io.ComfyNode):
    """MODEL that samples with the RLG mix of `base` and `tuned` (arXiv 2508.21016)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGModel",
            display_name="RLG Model",
            category="RLG",
            description="Makes one guided MODEL of two, for any sampler: base + scale × (tuned − base) at every step. "
            "To add another tuned model, connect the output to 'base' of a second RLG Model.",
            **search_aliases(
                "reinforcement learning guidance",
                "rl guidance",
                "guidance",
                "flow-grpo",
                "autoguidance",
                "mix models",
                "patch model",
            ),
            inputs=[
                inputs.base_input(),
                inputs.tuned_input(),
                inputs.scale_input(),
                inputs.schedule_input(),
                inputs.batching_input(),
                inputs.approximate_input(),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="Use it like any MODEL.")],
        )

    @classmethod
    def execute(
        cls,
        base: io.Model.Type,
        tuned: io.Model.Type,
        scale: float,
        schedule: Schedule | None = None,
        batching: str = AUTO,
        approximate: Approximation = EXACT,
    ) -> io.NodeOutput:
        settings = inputs.settings_of(scale, schedule, None, batching, approximate)
        return io.NodeOutput(guided_model(base, tuned, settings))


class RLGGuiderNode(io.ComfyNode):
    """GUIDER of the RLG mix, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGGuider",
            display_name="RLG Guider",
            category="RLG",
            description="Guider for SamplerCustomAdvanced: base + scale × (tuned − base), each with its own CFG.",
            **search_aliases(
                "reinforcement learning guidance", "rl guidance", "guidance", "flow-grpo", "dual model guider"
            ),
            inputs=[
                inputs.base_input(),
                inputs.tuned_input(),
                inputs.positive_input(),
                inputs.negative_input(),
                inputs.cfg_input(),
                inputs.scale_input(),
                inputs.schedule_input(),
                inputs.batching_input(),
                inputs.approximate_input(),
                inputs.tuned_cfg_input(),  # last, since saved workflows hold the values of widgets by position
            ],
            outputs=[io.Guider.Output(display_name="GUIDER", tooltip="For 'guider' of SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        base: io.Model.Type,
        tuned: io.Model.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        cfg: float,
        scale: float,
        schedule: Schedule | None = None,
        batching: str = AUTO,
        approximate: Approximation = EXACT,
        tuned_cfg: float | None = None,
    ) -> io.NodeOutput:
        settings = inputs.settings_of(scale, schedule, tuned_cfg, batching, approximate)
        guider = RLGGuider(guided_model(base, tuned, settings))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)
