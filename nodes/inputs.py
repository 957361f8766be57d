"""Inputs that several nodes share, so that they mean and say the same everywhere."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
from comfy_api.v0_0_2 import io

from ..rlg_sampler.guidance import approximation as approximations
from ..rlg_sampler.guidance.settings import AUTO, BATCHING, GuidanceSettings
from ..rlg_sampler.schedules import schedule as schedules

Schedule = io.Custom("RLG_SCHEDULE")
Approximation = io.Custom("RLG_APPROXIMATION")

_AS_CFG = 0.0
"""A tuned_cfg that stands for cfg."""

_SCALE = (
    "How strongly the RL tuning acts. 0 = base model, 1 = tuned model, between = weaker, above 1 = beyond what "
    "training reached (1 to 3 is usual; more reward, less variety), below 0 = away from it."
)


def answer(check: Callable[..., object], *values: str | None) -> bool | str:
    """What a node's `validate_inputs` says of values: True, or why `check` refuses them.

    The host asks before anything runs; what another node gives is None then, and not checked.
    """
    if None in values:
        return True
    try:
        check(*values)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return True


def base_input() -> io.Model.Input:
    return io.Model.Input(
        "base",
        tooltip="The base MODEL, before RL tuning. It may come from an RLG Model, to mix in one more tuned model.",
    )


def tuned_input() -> io.Model.Input:
    return io.Model.Input(
        "tuned",
        tooltip="The RL-tuned MODEL: the base with its LoRA (no second copy of the weights is kept) or a tuned "
        "checkpoint. Its own patches (PAG, SLG, RescaleCFG, ...) act on it alone; to have one on both, put it "
        "before the LoRA loader, or use RLG Model and put it after.",
    )


def scale_input(name: str = "scale", default: float = 1.6, tooltip: str = _SCALE) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=-10.0, max=10.0, step=0.05, round=0.001, tooltip=tooltip)


def percent_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        round=0.001,
        tooltip=f"{tooltip}. With denoise below 1 only the steps that run count.",
    )


def schedule_input() -> io.Input:
    return Schedule.Input(
        "schedule",
        optional=True,
        tooltip="A scale that changes over the steps, from one of the RLG schedule nodes; it replaces scale. "
        "Steps at scale 0 evaluate the base model alone, steps at 1 the tuned model alone.",
    )


def cfg_input() -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=4.5,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Classifier-free guidance of both models (of the base alone where tuned_cfg is not 0). "
        "1.0 = no CFG: the negative prompt is ignored and not computed.",
    )


def tuned_cfg_input() -> io.Float.Input:
    return io.Float.Input(
        "tuned_cfg",
        default=_AS_CFG,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        optional=True,
        tooltip="CFG of the tuned model alone. 0 = the same as cfg. "
        "1.0 = no CFG for the tuned model, usual where it was RL-tuned without CFG.",
    )


def batching_input() -> io.Combo.Input:
    return io.Combo.Input(
        "batching",
        options=list(BATCHING),
        default=AUTO,
        optional=True,
        tooltip="How base and tuned model are computed where they share their weights; the picture is the same. "
        "auto = whichever is faster here; one batch = together, split only where memory asks for it; "
        "two passes = one after the other, with the least memory.",
    )


def approximate_input() -> io.Input:
    return Approximation.Input(
        "approximate",
        optional=True,
        tooltip="What to leave out for speed, from RLG Approximate; it changes the picture a little. Not connected: "
        "everything is exact.",
    )


def labels_input(tooltip: str, optional: bool = False) -> io.String.Input:
    return io.String.Input("labels", optional=optional, force_input=True, tooltip=tooltip)


def text_output(name: str, what: str) -> io.String.Output:
    """A text to be read, with a word about how."""
    return io.String.Output(
        display_name=name, tooltip=f"{what} To read it, connect Preview as Text (older: Preview Any)."
    )


def settings_of(
    scale: float,
    schedule: schedules.Schedule | None = None,
    tuned_cfg: float | None = None,
    batching: str = AUTO,
    approximate: approximations.Approximation = approximations.EXACT,
) -> GuidanceSettings:
    """What a node's inputs mean together: a connected schedule replaces the scale."""
    own_schedule = schedules.constant(scale) if schedule is None else schedule
    own_cfg = None if tuned_cfg == _AS_CFG else tuned_cfg
    return GuidanceSettings(own_schedule, own_cfg, batching, approximate)


def positive_input() -> io.Conditioning.Input:
    return io.Conditioning.Input("positive", tooltip="What the picture should show.")


def negative_input() -> io.Conditioning.Input:
    return io.Conditioning.Input("negative", tooltip="What it should not show. Not used where CFG is 1.0.")


def seed_input(tooltip: str, control_after_generate: bool = False) -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=control_after_generate,
        tooltip=tooltip,
    )


def ksampler_inputs() -> list[io.Input]:
    """The pair and everything that the stock KSampler asks for, in its order."""
    return [
        base_input(),
        tuned_input(),
        seed_input("The noise to start from. The same seed at another scale shows what the tuning changes.", True),
        io.Int.Input("steps", default=28, min=1, max=10000, tooltip="Sampling steps; 20 to 40 are usual for SD3.5."),
        cfg_input(),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler",
            tooltip="The sampling method. The RLG reference uses euler.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="normal",
            tooltip="How the noise falls over the steps. 'normal' matches the RLG reference on SD3.5.",
        ),
        positive_input(),
        negative_input(),
        io.Latent.Input("latent_image", tooltip="An empty latent, or an encoded picture to change (denoise below 1)."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much is made anew: 1 = everything, lower keeps more of latent_image.",
        ),
    ]
