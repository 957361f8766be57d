"""Train the demo's models again: `python dev.py train vae | base | composition | compressibility`.

Each stage builds on the files of those before it: the base model on the VAE, the LoRAs on both. They are read from the
output folder, or from `demo/pair` where that has none. A stage that was stopped goes on where it was when it is started
again.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.rewards import REWARDS
from demo.scenes import prompts
from demo.train import base, vae
from demo.train.export import host_state_dict
from demo.train.flow_grpo import SAMPLING_STEPS, Task, train_lora
from demo.train.text import encoded
from demo.trained_pair import PAIR
from dev import cache_folder
from files.replacing import replacing

PROMPTS = 512
"""Different prompts that a LoRA is trained on."""

# A KL weight that is felt keeps the LoRA near the base, and most of all what of it is mere noise: at 0.04 composition
# gained as much by giving up all variety, and no scale above 1 added to it.
TASKS = {
    "composition": Task(
        "composition", REWARDS["composition"],
        iterations=120, kl_weight=2.0, learning_rate=1e-3, noisy_steps=5,
    ),
    "compressibility": Task(
        "compressibility", REWARDS["compressibility"],
        iterations=100, kl_weight=0.04, learning_rate=1e-3, noisy_steps=SAMPLING_STEPS,
    ),
}  # fmt: skip


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        STAGES[arguments.stage](arguments)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"\nError: {error}", file=sys.stderr)
        return 1
    return 0


def _train_vae(arguments: argparse.Namespace) -> None:
    model = vae.train_vae(arguments.work, arguments.seed)
    weights = {vae.host_name(name): tensor for name, tensor in model.state_dict().items()}
    _write(weights, arguments.output / "vae" / "vae.safetensors")


def _train_base(arguments: argparse.Namespace) -> None:
    data = base.training_data(_vae(arguments.output), arguments.work, arguments.seed, arguments.host)
    model = base.train_base(arguments.work, arguments.seed, data)
    _write(host_state_dict(model.state_dict()), arguments.output / "base" / "mmdit.safetensors")


def _train_lora(arguments: argparse.Namespace) -> None:
    task = TASKS[arguments.stage]
    asked = prompts(arguments.seed, PROMPTS, held_out=False)
    text = encoded([prompt.text for prompt in asked], arguments.work, arguments.host)
    network, pictures = _base(arguments.output), _vae(arguments.output)
    model, history = train_lora(task, network, pictures, asked, text, arguments.work, arguments.seed)
    folder = arguments.output / task.name
    _write_adapter(model, folder)
    with open(folder / "curve.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["iteration", *history[0]])
        rows.writeheader()
        rows.writerows({"iteration": index, **_rounded(entry)} for index, entry in enumerate(history))


STAGES = {"vae": _train_vae, "base": _train_base, **dict.fromkeys(TASKS, _train_lora)}


def _vae(output: Path) -> AutoencoderTiny:
    model = vae.build()
    weights = load_file(_earlier(output, "vae/vae.safetensors"))
    model.load_state_dict({name: weights[vae.host_name(name)] for name in model.state_dict()})
    return model.eval()


def _base(output: Path) -> SD3Transformer2DModel:
    with tempfile.TemporaryDirectory() as folder:
        base.build().save_config(folder)
        file = str(_earlier(output, "base/mmdit.safetensors"))
        return SD3Transformer2DModel.from_single_file(file, config=folder, local_files_only=True).float().eval()


def _earlier(output: Path, file: str) -> Path:
    return output / file if (output / file).exists() else PAIR / file


def _write_adapter(model: PeftModel, folder: Path) -> None:
    _write(get_peft_model_state_dict(model), folder / "adapter_model.safetensors")
    config = model.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _write(weights: dict[str, Tensor], path: Path) -> None:
    half = {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary:
        save_file(half, temporary, metadata={"format": "pt"})
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


def _rounded(entry: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.5g}") for key, value in entry.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--host", type=Path, required=True, metavar="PATH", help="folder of a ComfyUI, for its tokenizer"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0, as the files in demo/pair)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU cores to use (default: all)")
    parser.add_argument(
        "--work", type=Path, default=cache_folder(os.environ) / "demo_train", metavar="DIR",
        help="checkpoints and prepared data (default: in the cache folder)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=PAIR, metavar="DIR", help="for the files (default: demo/pair)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
