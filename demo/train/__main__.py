"""Train the demo's models again: `python dev.py train vae | base | composition | text | compressibility`.

Each stage builds on the files of those before it: the base model on the VAE, the LoRAs on both. They are read from the
output folder, or from `demo/pair` where that has none. A stage that was stopped goes on where it was when it is started
again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor

from demo.train import base, lora, vae
from demo.train.asked import to_train_on
from demo.train.export import host_state_dict
from demo.trained_pair import PAIR, checkpoint, part
from environment.cache import cache_folder
from evaluation.command_line import carried_out
from evaluation.host import Extension, open_host
from evaluation.host_options import STOPPED
from files.replacing import replacing

_SMALL = {"steps": 8, "groups": 8, "group_size": 8, "trained_steps": 4, "kl_weight": 0.0, "average_decay": 0.96}
LORAS = {
    # Without its distance to the base it would draw more right at 1, all on pale grounds, and nothing more beyond 1.
    "composition": lora.Recipe(iterations=45, settings=_SMALL | {"kl_weight": 0.6}, rank=48, trainings=2),
    # It would go on to nearly all right; stopped here, scales above 1 have something left to do.
    "text": lora.Recipe(iterations=50, settings=_SMALL),
    "compressibility": lora.Recipe(iterations=30, settings=_SMALL | {"groups": 4}),
}
"""What it is tuned for → how."""


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    return carried_out(lambda: STAGES[arguments.stage](arguments), ValueError, stopped=STOPPED)


def _train_vae(arguments: argparse.Namespace) -> None:
    model = vae.train_vae(arguments.work, arguments.seed)
    weights = {vae.host_name(name): tensor for name, tensor in model.state_dict().items()}
    _write(weights, arguments.output / "vae" / "vae.safetensors")


def _train_base(arguments: argparse.Namespace) -> None:
    data = base.training_data(_vae(arguments.output), arguments.work, arguments.seed, arguments.host)
    model = base.train_base(arguments.work, arguments.seed, data)
    _write(host_state_dict(model.state_dict()), arguments.output / "base" / "mmdit.safetensors")


def _train_lora(arguments: argparse.Namespace) -> None:
    name, recipe = arguments.stage, LORAS[arguments.stage]
    open_host(arguments.host)
    loaded, runs = lora.load(checkpoint(arguments.output)), []
    for seed in range(arguments.seed * recipe.trainings, (arguments.seed + 1) * recipe.trainings):
        asked, state = to_train_on(name, seed), arguments.work / f"{name}_{seed}.safetensors"
        print(f"Encoding {len(asked)} prompts ...", flush=True)
        run = lora.trainer(Extension().module, loaded, recipe, name, asked, seed, state)
        lora.train(run, recipe.iterations)
        runs.append(run)
    lora.write(runs, arguments.output / name)


STAGES = {"vae": _train_vae, "base": _train_base, **dict.fromkeys(LORAS, _train_lora)}


def _vae(output: Path) -> AutoencoderTiny:
    model = vae.build()
    weights = part(output, "vae/vae.safetensors")
    model.load_state_dict({name: weights[vae.host_name(name)] for name in model.state_dict()})
    return model.eval()


def _write(weights: dict[str, Tensor], path: Path) -> None:
    half = {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary:
        save_file(half, temporary, metadata={"format": "pt"})
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--host",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of a ComfyUI: its tokenizer for the base model, all of it for the LoRAs",
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
