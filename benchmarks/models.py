"""The weights all methods share: a small SD3.5-type checkpoint, a Flow-GRPO-type adapter, and the two merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch

from demo.tiny_model import TinySD3, write_checkpoint, write_peft_adapter
from evaluation.host import Extension

# Flow-GRPO trains rank 32 on SD3.5 medium, which is 1536 wide: the same share of the width here.
_WIDTH_PER_RANK = 1536 // 32


@dataclass(frozen=True)
class Files:
    """What is on disk for one depth: base checkpoint, PEFT adapter folder, and the checkpoint merged of both."""

    base: Path
    adapter: Path
    merged: Path


def write_files(folder: Path, depth: int, extension: Extension, dtype: torch.dtype = torch.float32) -> Files:
    """Write the models of `depth` blocks; depth 24 is SD3.5 medium's shape."""
    config = TinySD3(depth=depth, dual_attention_blocks=(depth + 2) // 2)
    add_lora_folder(folder)
    rank = max(4, config.hidden // _WIDTH_PER_RANK)
    base = folder / f"base-{depth}.safetensors"
    files = Files(
        write_checkpoint(base, config, with_clip=False, with_vae=False, dtype=dtype),
        write_peft_adapter(folder / f"adapter-{depth}", config, rank=rank, alpha=2 * rank),
        folder / f"merged-{depth}.safetensors",
    )
    comfy.sd.save_checkpoint(str(files.merged), load_tuned(load_model(files.base), files.adapter, extension))
    return files


def add_lora_folder(folder: Path) -> None:
    """Let the host's LoRA lists include `folder`."""
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)


def load_model(checkpoint: Path, dtype: torch.dtype | None = None) -> Any:
    """The MODEL of a checkpoint: a set of weights of its own at each call.

    Args:
        dtype: what to hold the weights in; None leaves it to the host, which widens all to float32 on a CPU.
    """
    model, *_ = comfy.sd.load_checkpoint_guess_config(
        str(checkpoint), output_vae=False, output_clip=False, model_options={"dtype": dtype} if dtype else {}
    )
    return model


def load_tuned(base: Any, adapter: Path, extension: Extension) -> Any:
    """The tuned MODEL on the weights of `base`."""
    return extension.run_node("RLGLoadLora", model=base, lora_name=adapter.name, strength=1.0)[0]
