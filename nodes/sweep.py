"""Nodes that compare scales and switch points in one go."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import latent_preview
import numpy as np
import torch
from comfy_api.v0_0_2 import io, ui

from ..plots.fonts import file_for
from ..rewards.pixels import pictures as rgb
from ..rewards.pixels import to_image
from ..rlg_sampler.guidance.guided_model import guided_model
from ..rlg_sampler.ksampler_inputs import KSamplerInputs
from ..rlg_sampler.sweeps.axes import LORA, POWER, SEED, Axis, settings
from ..rlg_sampler.sweeps.cell_cache import CellCache
from ..rlg_sampler.sweeps.grid import labelled_grid
from ..rlg_sampler.sweeps.labels import join, labels
from ..rlg_sampler.sweeps.sweep import Task, cells, sweep
from . import inputs
from .axes import axis_input
from .lists import as_list, only
from .live_cells import LiveCells
from .provenance import hidden_inputs, title_of
from .search import search_aliases

_CELLS = CellCache(max_bytes=2**28)
"""Latents of 256 MB: a thousand cells of a megapixel."""


class RLGSweep(io.ComfyNode):
    """RLGKSampler for every scale, or every pair of switch point and scale, from the same noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGSweep",
            display_name="RLG Sweep",
            category="RLG",
            description="Samples one seed at several scales, or at several switch points and scales. What the pictures "
            "have in common (the steps before they differ) is computed once.",
            **search_aliases("x/y plot", "xy plot", "xyz plot", "compare scales", "compare strengths", "flow-grpo"),
            inputs=[
                *inputs.ksampler_inputs(),
                io.String.Input(
                    "scales",
                    default="0, 0.5, 1, 1.6, 2, 3",
                    tooltip="Scales to compare, separated by commas: 0 = base model, 1 = tuned model, above 1 = beyond "
                    "it. From -10 to 10. Ranges: 0:3:0.5 (start:end:step), 0..3/7 (seven values). Cells that are done "
                    "are kept: one more scale costs one more cell.",
                ),
                io.String.Input(
                    "switch_percents",
                    default="",
                    tooltip="Empty = each scale for all steps. Or switch points such as 0.2, 0.5, 0.8: the base model "
                    "up to there, then each of the scales (RLG Combined Generation).",
                ),
                inputs.tuned_cfg_input(),
                axis_input("What else to compare, from RLG Axis or RLG LoRA Axis: each of its values with all scales."),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="LATENT", tooltip="All pictures as one batch: scale by scale, for each switch point."
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
        scales: str,
        switch_percents: str,
        tuned_cfg: float | None = None,
        axis: tuple[Axis, ...] = (),
        **ksampler_inputs: Any,
    ) -> io.NodeOutput:
        ksampler = KSamplerInputs(**ksampler_inputs)
        powers = next((each.values for each in axis if each.name == POWER), ())
        wanted = cells(scales, switch_percents, powers)
        chosen = list(settings([each for each in axis if each.name != POWER]))
        guided = functools.cache(functools.partial(guided_model, base))

        def task(values: Mapping[str, Any]) -> Task:
            """The node's inputs, with those that axes stand for."""
            of_tuned = values.get(LORA, tuned)
            guidance = inputs.settings_of(1.0, tuned_cfg=values.get("tuned_cfg", tuned_cfg))
            own = replace(ksampler, seed=values.get(SEED, ksampler.seed), cfg=values.get("cfg", ksampler.cfg))
            known = _CELLS.of(
                (base, of_tuned),
                (own.positive, own.negative, own.latent_image),
                (own.seed, own.steps, own.cfg, own.sampler_name, own.scheduler, own.denoise)
                + (guidance.tuned_cfg, base.patches_uuid, of_tuned.patches_uuid),
            )
            return Task(guided(of_tuned, guidance), own, known)

        tasks, pictures = [task(setting.values) for setting in chosen], ksampler.pictures
        names = [
            name
            for setting, each in zip(chosen, tasks, strict=True)
            for name in labels([join([*setting.said, cell.label]) for cell in wanted], pictures, each.inputs.seed)
        ]
        model = tasks[0].model
        make_callback = functools.partial(latent_preview.prepare_callback, model)
        return io.NodeOutput(sweep(tasks, wanted, make_callback, LiveCells(model, names, pictures)), names)


class RLGGrid(io.ComfyNode):
    """All pictures of a sweep in one, with what they are written beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGGrid",
            display_name="RLG Grid",
            category="RLG",
            description="One picture of many, labelled. What a whole row or column has in common becomes its header, "
            "what all have in common stands below the title.",
            **search_aliases("image grid", "contact sheet", "x/y plot", "xy plot", "label images"),
            inputs=[
                io.Image.Input("images", tooltip="The pictures, in the order of the labels."),
                inputs.labels_input(
                    "One label per picture, from RLG Sweep or RLG Branch; parts are separated by commas."
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Pictures per row. 0 = by the labels: scales as columns, switch points as rows.",
                ),
                io.String.Input(
                    "title",
                    default="",
                    tooltip="A line above the pictures. Empty = the names of model and LoRA; a space = none.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="For Save Image, which keeps the workflow in it.")],
            hidden=hidden_inputs(),
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor | list[torch.Tensor],
        labels: list[str],
        columns: int | list[int],
        title: str | list[str],
    ) -> io.NodeOutput:
        pictures = [picture for batch in as_list(images) for picture in batch]
        heading = title_of(cls, only(title), ("images", "labels"))
        grid = to_image(np.array(labelled_grid(list(rgb(pictures)), labels, only(columns), heading, file_for))[None])
        # Without the viewer in `web/` the host shows the cells as it does those of Preview Image.
        return io.NodeOutput(grid, ui={**ui.PreviewImage(pictures).as_dict(), "labels": labels})
