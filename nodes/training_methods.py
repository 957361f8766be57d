"""Nodes that say how RLG Train LoRA makes its gradient, one per family of methods."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..training.method import FLOW_GRPO, PolicyGradient
from .search import search_aliases

MethodType = io.Custom("RLG_METHOD")


class RLGFlowGRPO(io.ComfyNode):
    """Flow-GRPO, and with a window of noisy steps Flow-GRPO-Fast and MixGRPO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGFlowGRPO",
            display_name="RLG Flow-GRPO",
            category="RLG/training",
            description="Flow-GRPO (arXiv 2505.05470): several pictures per prompt with noise at every step; those "
            "above their group's mean become more likely. Works with any reward.",
            **search_aliases("rl method", "grpo", "flow grpo", "mixgrpo", "policy gradient"),
            inputs=[
                *_sampling_inputs(steps=10, cfg=4.5, noise_level=0.7),
                io.Int.Input(
                    "groups",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Prompts per iteration. The authors use 48 on 32 GPUs; more is steadier and slower.",
                ),
                io.Int.Input(
                    "group_size",
                    default=24,
                    min=2,
                    max=1024,
                    tooltip="Pictures per prompt, which are compared with each other. 24 as the authors; 8 learns too.",
                ),
                io.Int.Input(
                    "window",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="0 = noise at every step. 2 = at two steps in a row only, which alone are trained: several "
                    "times faster (Flow-GRPO-Fast, MixGRPO).",
                ),
                io.Int.Input(
                    "window_start",
                    default=4,
                    min=0,
                    max=100,
                    tooltip="Where the window may begin at the latest: at a random step from 0 to this one. Without a "
                    "window it has no effect.",
                ),
                io.Float.Input(
                    "kl_weight",
                    default=0.04,
                    min=0.0,
                    max=10.0,
                    step=0.005,
                    round=1e-6,
                    tooltip="How strongly the LoRA is held near the base. 0.04 for objects and text, 0.01 for "
                    "PickScore; lower = more reward, less variety, and sooner tricks.",
                ),
                *_policy_inputs(clip_range=1e-4, largest_advantage=5.0),
            ],
            outputs=[_method_output()],
        )

    @classmethod
    def execute(
        cls,
        steps: int,
        cfg: float,
        noise_level: float,
        groups: int,
        group_size: int,
        window: int,
        window_start: int,
        kl_weight: float,
        clip_range: float,
        largest_advantage: float,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            PolicyGradient(
                FLOW_GRPO.name,
                FLOW_GRPO.source,
                steps=steps,
                cfg=cfg,
                noise_level=noise_level,
                groups=groups,
                group_size=group_size,
                window=window,
                window_start=window_start if window else 0,
                kl_weight=kl_weight,
                clip_range=clip_range,
                largest_advantage=largest_advantage,
            )
        )


def _sampling_inputs(steps: int, cfg: float, noise_level: float) -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=steps,
            min=2,
            max=200,
            tooltip="Sampling steps of the pictures that are learned from. Fewer than for good pictures will do.",
        ),
        io.Float.Input(
            "cfg",
            default=cfg,
            min=1.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip="Text guidance while training. 1.0 = none: faster, and the tuned model learns to do without.",
        ),
        io.Float.Input(
            "noise_level",
            default=noise_level,
            min=0.01,
            max=2.0,
            step=0.05,
            round=0.001,
            tooltip="How much noise a step draws. Too little explores nothing, too much spoils the pictures.",
        ),
    ]


def _policy_inputs(clip_range: float, largest_advantage: float) -> list[io.Input]:
    return [
        io.Float.Input(
            "clip_range",
            default=clip_range,
            min=1e-7,
            max=1.0,
            step=1e-5,
            round=1e-9,
            tooltip="How far one iteration may move the policy, as a ratio of densities. Wider = faster, less steady.",
        ),
        io.Float.Input(
            "largest_advantage",
            default=largest_advantage,
            min=0.1,
            max=100.0,
            step=0.5,
            round=0.01,
            tooltip="No picture counts for more than this many standard deviations.",
        ),
    ]


def _method_output() -> io.Input:
    return MethodType.Output(display_name="method", tooltip="For RLG Train LoRA.")
