"""The all-in-one sampler node."""

from __future__ import annotations

from typing import Any

import nodes as comfy_nodes
from comfy_api.v0_0_2 import io

from ..rlg_sampler.guidance.approximation import EXACT, Approximation
from ..rlg_sampler.guidance.guided_model import guided_model
from ..rlg_sampler.guidance.settings import AUTO
from ..rlg_sampler.ksampler_inputs import KSamplerInputs
from ..rlg_sampler.schedules.schedule import Schedule
from . import inputs
from .search import search_aliases


class RLGKSampler(io.ComfyNode):
    """KSampler for a pair: the stock sampler on the guided MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGKSampler",
            display_name="RLG KSampler",
            category="RLG",
            description="KSampler for a base model and its RL-tuned version (Reinforcement Learning Guidance): "
            "base + scale × (tuned − base) at every step.",
            **search_aliases("reinforcement learning guidance", "rl guidance", "guidance", "flow-grpo", "reward"),
            inputs=[
                *inputs.ksampler_inputs(),
                inputs.scale_input(),
                inputs.schedule_input(),
                inputs.batching_input(),
                inputs.approximate_input(),
                inputs.tuned_cfg_input(),  # last, since saved workflows hold the values of widgets by position
            ],
            outputs=[io.Latent.Output(display_name="LATENT", tooltip="The picture as latent, for VAE Decode.")],
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
        tuned_cfg: float | None = None,
        **ksampler_inputs: Any,
    ) -> io.NodeOutput:
        model = guided_model(base, tuned, inputs.settings_of(scale, schedule, tuned_cfg, batching, approximate))
        ksampler = KSamplerInputs(**ksampler_inputs)
        ksampler.start(model)  # refuses a latent of another model before anything is loaded
        (latent,) = comfy_nodes.KSampler().sample(model, **vars(ksampler))
        return io.NodeOutput(latent)
