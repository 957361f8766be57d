"""Nodes for the way reinforcement learning explores: noise on the way, and several ends from one beginning."""

from __future__ import annotations

import functools
from typing import Any

import comfy.samplers
import latent_preview
from comfy_api.v0_0_2 import io

from ..rlg_sampler.guidance.guided_model import guided_model
from ..rlg_sampler.ksampler_inputs import KSamplerInputs
from ..rlg_sampler.schedules.schedule import Schedule
from ..rlg_sampler.stochastic.flow_grpo_sampler import sample_flow_grpo
from ..rlg_sampler.sweeps.branch_sampling import Fork, branch_samples
from ..rlg_sampler.sweeps.labels import labels
from . import inputs
from .live_cells import LiveCells
from .search import search_aliases


class RLGSamplerFlowGRPO(io.ComfyNode):
    """The stochastic sampler of Flow-GRPO's training (arXiv 2505.05470, eq. 9)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGSamplerFlowGRPO",
            display_name="Flow-GRPO SDE",
            category="RLG",
            description="The stochastic sampler that Flow-GRPO trains with, for flow models (SD3, Flux): euler with "
            "fresh noise at every step.",
            **search_aliases("rlg", "flow grpo", "stochastic sampler", "sde sampler", "exploration noise"),
            inputs=[
                io.Float.Input(
                    "noise_level",
                    default=0.7,
                    min=0.0,
                    max=5.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much noise each step adds: 0 = none (euler), 0.7 = as in training; more = more "
                    "variety, and with few steps a grainy picture.",
                )
            ],
            outputs=[io.Sampler.Output(display_name="SAMPLER", tooltip="For SamplerCustomAdvanced or RLG Branch.")],
        )

    @classmethod
    def execute(cls, noise_level: float) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_flow_grpo, {"noise_level": noise_level}))


class RLGBranch(io.ComfyNode):
    """Several pictures that begin as one (branch sampling of B²-DiffuRL, arXiv 2503.11240)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGBranch",
            display_name="RLG Branch",
            category="RLG",
            description="Samples the beginning once and ends it several times with fresh noise: variations to choose "
            "from, alike in what was settled before the branch.",
            **search_aliases("variations", "branch sampling", "b2-diffurl", "seed variation"),
            inputs=[
                *inputs.ksampler_inputs(),
                inputs.scale_input(),
                io.Int.Input(
                    "branches", default=4, min=1, max=64, tooltip="How many pictures to make from one beginning."
                ),
                inputs.percent_input(
                    "branch_percent",
                    0.5,
                    "Where the branches part, as a fraction of the steps: early = more different, late = details only",
                ),
                io.Float.Input(
                    "noise_level",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much of the noise that is left at the branch is fresh: 0 = none (only a stochastic "
                    "sampler tells the branches apart), 1 = all of it.",
                ),
                inputs.schedule_input(),
                inputs.tuned_cfg_input(),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="A sampler in place of sampler_name, such as Flow-GRPO SDE.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="LATENT", tooltip="All branches as one batch. To keep one: Latent From Batch."
                ),
                io.String.Output(
                    display_name="labels", is_output_list=True, tooltip="One label per picture, for RLG Grid."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        base: io.Model.Type,
        tuned: io.Model.Type,
        scale: float,
        branches: int,
        branch_percent: float,
        noise_level: float,
        schedule: Schedule | None = None,
        tuned_cfg: float | None = None,
        sampler: io.Sampler.Type | None = None,
        **ksampler_inputs: Any,
    ) -> io.NodeOutput:
        model = guided_model(base, tuned, inputs.settings_of(scale, schedule, tuned_cfg))
        fork = Fork(branch_percent, branches, noise_level)
        ksampler = KSamplerInputs(**ksampler_inputs)
        make_callback = functools.partial(latent_preview.prepare_callback, model)
        pictures = ksampler.pictures
        names = labels([f"branch {branch + 1}" for branch in range(branches)], pictures, ksampler.seed)
        done = LiveCells(model, names, pictures)
        return io.NodeOutput(branch_samples(model, fork, ksampler, make_callback, sampler, done), names)
