"""Nodes that read prompt sets and write picture sets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.v0_0_2 import io
from PIL.PngImagePlugin import PngInfo

from ..files.captioned import captions_among
from ..files.names import is_of_the_system
from ..files.pictures import Entry, PictureSet
from ..files.prompts import SUFFIXES, read_prompts
from ..rewards.pixels import to_bytes
from ..rlg_sampler.messages import shown
from ..rlg_sampler.schedules.schedule import Schedule, constant
from ..rlg_sampler.sweeps.labels import schedule_and_seed
from . import inputs
from .host_folders import inside
from .lists import check_number, spread
from .search import search_aliases


class RLGLoadPrompts(io.ComfyNode):
    """The prompts of a file, one after another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGLoadPrompts",
            display_name="RLG Load Prompts",
            category="RLG/evaluation",
            description="Prompts from a file in ComfyUI's input folder. What is connected runs once for each of them.",
            **search_aliases("prompts from file", "prompt list", "text file", "csv", "jsonl"),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_prompt_files(),
                    tooltip="A file in ComfyUI's input folder, in UTF-8: .txt with one prompt a line, .csv with a "
                    "header, or .jsonl with one object a line. Put it there and press R.",
                ),
                io.String.Input(
                    "column",
                    default="prompt",
                    tooltip="The column of a .csv file, or the key in a .jsonl file, that holds the prompts.",
                ),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=10**9,
                    tooltip="The first prompt to take, counted from 0 (after the shuffle).",
                ),
                io.Int.Input("count", default=0, min=0, max=10**9, tooltip="How many to take. 0 = all that follow."),
                io.Int.Input(
                    "shuffle_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="0 = in the order of the file. Any other number: shuffled, always the same way.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="The prompts, one after another."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Is it there?"""
        return inputs.answer(_prompt_path, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> Any:
        if file is None:  # it comes through a link, and is not known yet
            return None
        status = _prompt_path(file).stat()
        return status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, file: str, column: str, start: int, count: int, shuffle_seed: int) -> io.NodeOutput:
        return io.NodeOutput(read_prompts(_prompt_path(file), column, start, count, shuffle_seed))


class RLGSaveSet(io.ComfyNode):
    """Pictures in a folder for each scale, with a table of how they were made."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGSaveSet",
            display_name="RLG Save Set",
            category="RLG/evaluation",
            description="Saves pictures by scale, in the layout of the RLG reference: scale_1.6/00000.png …, with a "
            "metadata.csv. Pictures that are there already are not saved again.",
            **search_aliases("save images", "dataset", "metadata csv", "export"),
            inputs=[
                io.Image.Input("images", tooltip="The pictures: a batch, or several."),
                io.String.Input(
                    "prompt",
                    force_input=True,
                    tooltip="What the pictures show: one text for all, one per batch or one per picture.",
                ),
                io.String.Input(
                    "folder",
                    default="rlg_set",
                    tooltip="A folder in ComfyUI's output folder. What is there stays; new pictures are numbered "
                    "after it.",
                ),
                inputs.seed_input("The seed they were sampled with."),
                inputs.scale_input(tooltip="The scale they were sampled at; it names their folder."),
                io.String.Input("model", default="", tooltip="Name of the base model, for the table."),
                io.String.Input("lora", default="", tooltip="Name of the LoRA or tuned model, for the table."),
                inputs.Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="The schedule they were sampled with, if there was one; it replaces scale.",
                ),
                inputs.labels_input(
                    "One label per picture, from RLG Sweep; they replace seed, scale and schedule.", optional=True
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="How many were saved, and where.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        prompt: list[str],
        folder: list[str],
        seed: list[int],
        scale: list[float],
        model: list[str],
        lora: list[str],
        schedule: list[Schedule] | None = None,
        labels: list[str] | None = None,
    ) -> io.NodeOutput:
        sizes = [len(batch) for batch in images]
        if labels is None:
            seeds = spread("seed", seed, sizes)
            schedules = spread("schedule", schedule or [constant(value) for value in scale], sizes)
        else:
            check_number("labels", labels, sum(sizes))
            schedules, seeds = zip(*(schedule_and_seed(label) for label in labels), strict=True)
        of_each = (spread(name, values, sizes) for name, values in (("model", model), ("lora", lora)))
        entries = [
            Entry(text, number, plan.constant_scale, "" if plan.constant_scale is not None else str(plan), *names)
            for text, number, plan, *names in zip(
                spread("prompt", prompt, sizes), seeds, schedules, *of_each, strict=True
            )
        ]
        root = _set_folder(folder[0], entries)
        # Each as it is written: a second copy of all would be a quarter of what they take.
        pictures = (to_bytes(picture) for batch in images for picture in batch)
        files = PictureSet(root).add(pictures, entries, cls._workflow())
        report = f"{len(files)} pictures saved in {root}"
        if held := len(entries) - len(files):
            report += f"; {held} were there already"
        output = Path(folder_paths.get_output_directory()).resolve()
        saved = [
            {"filename": file.name, "subfolder": str(file.parent.relative_to(output)), "type": "output"}
            for file in files
        ]
        return io.NodeOutput(f"{report}.", ui={"images": saved})

    @classmethod
    def _workflow(cls) -> PngInfo | None:
        """What the host's SaveImage writes into its files, so that they can be dropped on the canvas."""
        if args.disable_metadata or cls.hidden is None:
            return None
        info = PngInfo()
        if cls.hidden.prompt is not None:
            info.add_text("prompt", json.dumps(cls.hidden.prompt))
        for name, value in (cls.hidden.extra_pnginfo or {}).items():
            info.add_text(name, json.dumps(value))
        return info


def _prompt_files() -> list[str]:
    root = Path(folder_paths.get_input_directory()).resolve()
    found: list[Path] = []
    # The host asks several times for each run, and most of what the folder holds are pictures: they stay names.
    for folder, _, names in os.walk(root):
        if texts := {name for name in names if name.lower().endswith(SUFFIXES)}:
            found += (Path(folder, name) for name in texts - captions_among(names) if not is_of_the_system(name))
    # Links are followed to their file, as the host does, but not out of the folder.
    return sorted(
        file.relative_to(root).as_posix()
        for file in found
        if file.suffix.lower() in SUFFIXES and file.resolve().is_relative_to(root)
    )


def _prompt_path(name: str) -> Path:
    if not name:
        raise ValueError(
            f"file: there is none; upload a {', '.join(SUFFIXES)} file with the button, or put one into ComfyUI's "
            "input folder and press R."
        )
    path = inside(folder_paths.get_input_directory(), name)
    if path is None:
        raise ValueError(
            f"file: '{shown(name)}' is not inside ComfyUI's input folder; put the file there and choose it."
        )
    if not path.is_file():
        raise ValueError(
            f"file: '{shown(name)}' is not in ComfyUI's input folder; put it there, press R, and choose it again."
        )
    return path


def _set_folder(name: str, entries: Sequence[Entry]) -> Path:
    """The set's folder; it and the folders in it that are written to are inside the host's output folder."""
    output = folder_paths.get_output_directory()
    root = inside(output, name.strip())
    if root is None or any(inside(output, str(root / entry.folder)) is None for entry in entries):
        raise ValueError(
            f"folder: '{shown(name)}' leads out of ComfyUI's output folder; give a short name without .. and /."
        )
    return root
