"""The node that trades a little of the picture for speed."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..rlg_sampler.guidance.approximation import Approximation
from . import inputs
from .search import search_aliases


class RLGApproximate(io.ComfyNode):
    """What a guided run may leave out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGApproximate",
            display_name="RLG Approximate (faster, changes the picture)",
            category="RLG",
            description="For drafts: leaves out evaluations that change the picture little. Exact guidance costs two "
            "models a step; with their difference computed at every second step it costs 1.5, at every third 1.33.",
            **search_aliases("speed up", "draft", "cache", "skip steps"),
            inputs=[
                io.Int.Input(
                    "direction_every",
                    default=2,
                    min=1,
                    max=10,
                    tooltip="Compute the difference between tuned and base model at every n-th step only, and keep it "
                    "in between, where one of the two is evaluated. 1 = at every step, exact; higher = faster and "
                    "rougher.",
                ),
                io.Boolean.Input(
                    "shared_uncond",
                    default=False,
                    tooltip="Evaluate the negative prompt with one of the two models only, and use it in the CFG of "
                    "both: three evaluations a step in place of four. Nothing changes where CFG is 1.0.",
                ),
                inputs.percent_input(
                    "start_percent", 0.0, "Where leaving out begins, as a fraction of the steps; before it all is exact"
                ),
                inputs.percent_input(
                    "end_percent", 1.0, "Where it ends, as a fraction of the steps; from there on all is exact"
                ),
            ],
            outputs=[
                inputs.Approximation.Output(
                    display_name="approximate", tooltip="For 'approximate' of RLG Model, RLG Guider and RLG KSampler."
                )
            ],
        )

    @classmethod
    def execute(
        cls, direction_every: int, shared_uncond: bool, start_percent: float, end_percent: float
    ) -> io.NodeOutput:
        return io.NodeOutput(Approximation(direction_every, shared_uncond, start_percent, end_percent))
