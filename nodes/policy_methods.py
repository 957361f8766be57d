"""Training methods that make the drawn steps of good pictures more likely; they work with any reward."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.v0_0_2 import io

from ..training.methods.presets import B2_DIFFU_RL, DDPO, FLOW_GRPO
from . import training_inputs
from .search import search_aliases


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
            **search_aliases("rl method", "flow grpo", "mixgrpo", "policy gradient"),
            inputs=[
                *training_inputs.sampling_inputs(steps=10, cfg=4.5, noise_level=0.7),
                io.Int.Input(
                    "groups",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Prompts per iteration. The authors use 48 on 32 GPUs; more is steadier and slower.",
                ),
                training_inputs.group_size_input(24),
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
                    default=3,
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
                io.Int.Input(
                    "window_interval",
                    default=0,
                    min=0,
                    max=10_000,
                    optional=True,
                    tooltip="0 = the window begins at a random step. 25 = at step 0, one step later every 25 "
                    "iterations up to window_start, and from 0 again: MixGRPO.",
                ),
            ],
            outputs=[training_inputs.method_output()],
        )

    @classmethod
    def execute(cls, window: int, window_start: int, window_interval: int = 0, **settings: float) -> io.NodeOutput:
        method = replace(FLOW_GRPO, **settings)
        if window:
            method = replace(method, window=window, window_start=window_start, window_interval=window_interval)
        return io.NodeOutput(training_inputs.ChosenMethod(method))


class RLGDDPO(io.ComfyNode):
    """DDPO as Pinterest trains it at scale, with real pictures beside the reward if there are any."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGDDPO",
            display_name="RLG DDPO",
            category="RLG/training",
            description="DDPO (arXiv 2401.12244): pictures of many prompts are compared with each other, some random "
            "steps of each are trained. Works with any reward.",
            **search_aliases("rl method", "policy gradient", "joint rl"),
            inputs=[
                *training_inputs.sampling_inputs(steps=50, cfg=7.0, noise_level=1.0),
                training_inputs.groups_input(4),
                training_inputs.group_size_input(
                    24, "Pictures per prompt. All pictures of an iteration are compared with each other.", least=1
                ),
                io.Int.Input(
                    "trained_steps",
                    default=5,
                    min=0,
                    max=200,
                    tooltip="How many random steps of each picture are trained. 0 = all.",
                ),
                *_policy_inputs(clip_range=1e-4, largest_advantage=10.0),
                training_inputs.image_weight_input(1.0),
                training_inputs.images_input(", for a diffusion loss beside the reward. Not connected: none."),
            ],
            outputs=[training_inputs.method_output()],
        )

    @classmethod
    def execute(cls, image_weight: float, images: torch.Tensor | None = None, **settings: float) -> io.NodeOutput:
        method = replace(DDPO, image_weight=0.0 if images is None else image_weight, **settings)
        return io.NodeOutput(training_inputs.ChosenMethod(method, images))


class RLGB2DiffuRL(io.ComfyNode):
    """B²-DiffuRL: backward progressive training and branch-based sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGB2DiffuRL",
            display_name="RLG B²-DiffuRL",
            category="RLG/training",
            description="B²-DiffuRL (arXiv 2503.11240): pictures part from one beginning, and the best and the worst "
            "of them are learned from; training goes backward from the last steps. Works with any reward.",
            **search_aliases("rl method", "b2-diffurl", "branch sampling", "policy gradient"),
            inputs=[
                *training_inputs.sampling_inputs(steps=20, cfg=5.0, noise_level=1.0),
                training_inputs.groups_input(16),
                io.Int.Input(
                    "branches",
                    default=5,
                    min=2,
                    max=256,
                    tooltip="Pictures that part from one beginning. 5 as the authors.",
                ),
                io.Int.Input(
                    "first_tail",
                    default=14,
                    min=2,
                    max=200,
                    tooltip="How many of the last steps are trained at the start. 14 as the authors.",
                ),
                io.Int.Input(
                    "last_tail",
                    default=20,
                    min=2,
                    max=200,
                    tooltip="How many of the last steps are trained at the end. 20 as the authors: all.",
                ),
                io.Int.Input(
                    "stages",
                    default=100,
                    min=1,
                    max=100_000,
                    tooltip="Iterations in which first_tail grows to last_tail.",
                ),
                *_policy_inputs(clip_range=0.1, largest_advantage=5.0),
            ],
            outputs=[training_inputs.method_output()],
        )

    @classmethod
    def execute(cls, branches: int, first_tail: int, last_tail: int, **settings: float) -> io.NodeOutput:
        method = replace(B2_DIFFU_RL, group_size=branches, tail=(first_tail, last_tail), **settings)
        return io.NodeOutput(training_inputs.ChosenMethod(method))


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
