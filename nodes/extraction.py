"""A node that saves the difference of two models as a LoRA."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.v0_0_2 import io

from ..files.replacing import replacing
from ..rlg_sampler.messages import shown
from ..rlg_sampler.weights.extraction import extract_lora
from .host_folders import inside
from .inputs import text_output
from .search import search_aliases


class RLGExtractLora(io.ComfyNode):
    """A LoRA file that approximates a fully tuned model, for a pair with one copy of the weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLGExtractLora",
            display_name="RLG Extract LoRA (approximate)",
            category="RLG",
            description="Saves tuned − base as a LoRA of the given rank. Two checkpoints as a pair are exact and take "
            "twice the memory; this is an approximation that takes little.",
            **search_aliases("lora extraction", "difference lora", "subtract models", "svd"),
            inputs=[
                io.Model.Input("base", tooltip="The MODEL that tuned started from."),
                io.Model.Input("tuned", tooltip="A fully tuned version of the base model, from its own checkpoint."),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=1024,
                    tooltip="Size of the LoRA: more captures more of the tuning. The report says how much.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/rlg_extracted",
                    tooltip="Folder and name of the file in ComfyUI's output folder. In output/loras the LoRA loaders "
                    "find it (press R).",
                ),
            ],
            outputs=[text_output("report", "The file's name, and how much of each module's change was captured.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, base: io.Model.Type, tuned: io.Model.Type, rank: int, filename_prefix: str) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        nameless = not Path(filename_prefix).name.strip(". ")  # would be a hidden file
        if nameless or inside(output, filename_prefix) is None:  # the host says so too, but only after the work
            raise ValueError(
                f"filename_prefix: '{shown(filename_prefix)}' is no file inside ComfyUI's output folder; give a short "
                "name, such as loras/my_lora, without .. and drives."
            )
        bar = comfy.utils.ProgressBar(1)

        def done(number: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(number, total)

        lora = extract_lora(base, tuned, rank, done)
        folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, output)
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        metadata = {"approximates": "tuned - base", "captured": f"{lora.captured:.4f}", "rank": str(rank)}
        with replacing(path) as temporary:
            comfy.utils.save_torch_file(lora.weights, str(temporary), metadata)
        return io.NodeOutput(lora.report(str(path.relative_to(output))))
