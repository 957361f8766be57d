"""What the nodes of training methods have in common: what they make, and inputs that mean the same in all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.v0_0_2 import io

from ..training.methods.settings import Method

MethodType = io.Custom("RLG_METHOD")


@dataclass(frozen=True)
class ChosenMethod:
    """A method, with the real pictures that it learns from beside the reward, if any: IMAGE, one per prompt."""

    method: Method
    images: torch.Tensor | None = None


def groups_input(groups: int) -> io.Int.Input:
    return io.Int.Input(
        "groups", default=groups, min=1, max=1024, tooltip="Prompts per iteration. More is steadier and slower."
    )


def group_size_input(
    size: int,
    tooltip: str = "Pictures per prompt, which are compared with each other. 24 as the authors; 8 learns too.",
    least: int = 2,
) -> io.Int.Input:
    return io.Int.Input("group_size", default=size, min=least, max=1024, tooltip=tooltip)


def size_input(name: str, tooltip: str, optional: bool = False) -> io.Int.Input:
    return io.Int.Input(name, default=512, min=16, max=4096, step=8, optional=optional, tooltip=tooltip)


def images_input(use: str) -> io.Image.Input:
    """Real pictures; `use` goes on with the tooltip's sentence."""
    return io.Image.Input("images", optional=True, tooltip=f"Real pictures, one per prompt in their order{use}")


def image_weight_input(weight: float) -> io.Float.Input:
    return io.Float.Input(
        "image_weight",
        default=weight,
        min=0.0,
        max=100.0,
        step=0.01,
        round=1e-6,
        tooltip="Only with images: how strongly the diffusion loss holds the model to them.",
    )


def sampling_inputs(steps: int, cfg: float, noise_level: float | None = None) -> list[io.Input]:
    inputs = [
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
    ]
    if noise_level is not None:
        inputs.append(
            io.Float.Input(
                "noise_level",
                default=noise_level,
                min=0.01,
                max=2.0,
                step=0.05,
                round=0.001,
                tooltip="How much noise a step draws. Too little explores nothing, too much spoils the pictures.",
            )
        )
    return inputs


def method_output() -> io.Output:
    return MethodType.Output(display_name="method", tooltip="For RLG Train LoRA.")
