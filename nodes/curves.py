"""Nodes that show what a scale does to reward and diversity."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..plots.figure import THEMES, check_available, picture
from ..plots.reward_curve import reward_curve
from ..rewards import diversity as diversities
from ..rewards.curve import curve
from ..rewards.pixels import to_image
from ..rlg_sampler.sweeps.labels import places, settings
from .inputs import answer, labels_input, text_output
from .lists import as_list, check_number, only, per_image
from .provenance import REWARD, hidden_inputs, reward_of, title_of
from .scoring import chosen, file_input
from .search import search_aliases


class RLGDiversity(io.ComfyNode):
    """How different the pictures of one prompt and setting are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGDiversity",
            display_name="RLG Diversity",
            category="RLG/evaluation",
            description="How different pictures of the same prompt and scale are: what strong guidance costs. It needs "
            "two or more of each, such as a latent batch of 4.",
            **search_aliases("variety", "similarity", "lpips", "vendi score", "dino"),
            inputs=[
                io.Image.Input("images", tooltip="The pictures; also a list of batches, such as one per prompt."),
                labels_input("One label per picture, from RLG Sweep or RLG Branch: it says which belong together."),
                io.Combo.Input(
                    "measure",
                    options=list(diversities.MEASURES),
                    default="pixels",
                    tooltip="Mean distance between two pictures: pixels = root mean square difference, no weights "
                    "needed; clip and dino = 1 - cosine of features; lpips (needs pip install lpips). vendi_* = how "
                    "many different pictures there are (needs pip install vendi-score).",
                ),
                file_input("CLIP, DINO or AlexNet"),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="Where there are several: one per batch or one per picture, from RLG Score. Only pictures "
                    "of the same prompt are compared.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="diversity",
                    is_output_list=True,
                    tooltip="One value per picture, for RLG Plot: its mean distance to the others of its group.",
                ),
                io.Float.Output(display_name="mean", tooltip="The mean over all pictures."),
                text_output("text", "The diversity of each scale."),
            ],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, measure: str | list[str] | None = None, file: str | list[str] | None = None) -> bool | str:
        """Are the weights there?"""
        return answer(lambda name, file: diversities.files_of(name, chosen(file)), only(measure), only(file))

    @classmethod
    def execute(
        cls,
        images: torch.Tensor | list[torch.Tensor],
        labels: str | list[str],
        measure: str | list[str],
        file: str | list[str],
        prompts: str | list[str] | None = None,
    ) -> io.NodeOutput:
        batches = as_list(images)
        pictures = [picture for batch in batches for picture in batch]
        of_settings = settings(as_list(labels))
        check_number("labels", of_settings, len(pictures))
        of_prompts = per_image(prompts or "", batches)
        groups = [", ".join(filter(None, both)) for both in zip(of_prompts, of_settings, strict=True)]
        name = only(measure)
        found = diversities.diversity(diversities.measure(name, chosen(only(file))), pictures, groups)
        mean = sum(found) / len(found)
        lines = [f"{name}: mean {mean:.4f} of {len(found)} pictures"]
        for setting in dict.fromkeys(of_settings):
            of_setting = [value for value, other in zip(found, of_settings, strict=True) if other == setting]
            lines.append(f"{setting or 'all'}: {sum(of_setting) / len(of_setting):.4f}")
        return io.NodeOutput(found, mean, "\n".join(lines))


class RLGPlot(io.ComfyNode):
    """Reward and diversity against the scale, and against each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGPlot",
            display_name="RLG Plot",
            category="RLG/evaluation",
            description="What each scale of a sweep is worth: reward with its 95 % confidence interval; with diversity "
            "also that, and which scales give the most of both (the Pareto front).",
            **search_aliases("reward curve", "chart", "graph", "pareto"),
            inputs=[
                io.Float.Input("scores", force_input=True, tooltip="One score per picture, from RLG Score."),
                labels_input("One label per picture, from RLG Sweep: it says the scale."),
                io.Combo.Input("theme", options=list(THEMES), default="light", tooltip="Colours: light or dark."),
                io.String.Input(
                    "reward_name",
                    default=REWARD,
                    tooltip="What the scores are called in the plot. 'reward' = the name of the reward that made them.",
                ),
                io.String.Input(
                    "title",
                    default="",
                    tooltip="A line above the plots. Empty = the names of model and LoRA; a space = none.",
                ),
                io.Float.Input(
                    "diversity", optional=True, force_input=True, tooltip="One value per picture, from RLG Diversity."
                ),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="One prompt per picture, from RLG Score: with several prompts the interval is over "
                    "prompts, since pictures of one prompt are alike.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="For Save Image, which keeps the workflow in it."),
                io.String.Output(
                    display_name="csv", tooltip="The numbers behind the plots, a line per scale, separated by commas."
                ),
            ],
            hidden=hidden_inputs(),
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, title: str | list[str] | None = None) -> bool | str:
        """Whether it can draw, before a sweep is sampled for it; the host asks only nodes that take an input."""
        return answer(check_available)

    @classmethod
    def execute(
        cls,
        scores: float | list[float],
        labels: str | list[str],
        theme: str | list[str],
        reward_name: str | list[str],
        title: str | list[str],
        diversity: float | list[float] | None = None,
        prompts: str | list[str] | None = None,
    ) -> io.NodeOutput:
        scores = as_list(scores)
        if prompts is not None:
            prompts = as_list(prompts) * (len(scores) if len(as_list(prompts)) == 1 else 1)
        axis, where = places(as_list(labels))
        found = curve(axis, where, scores, None if diversity is None else as_list(diversity), prompts)
        heading = title_of(cls, only(title), ("labels", "scores"))
        reward = reward_of(cls, only(reward_name))
        drawn = picture(reward_curve(found, only(theme), heading, reward))
        image = to_image(np.array(drawn)[None])
        return io.NodeOutput(image, found.csv(), ui=ui.PreviewImage(image))
