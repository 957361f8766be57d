"""An iteration of Flow-GRPO by the pack's trainer, beside the same by the research code's way on diffusers and PEFT.

Both draw, score and learn from as many pictures, in the same batches, over the same steps: with all activations kept
for the backward pass, and with checkpointed blocks, as models of real size are trained. Pictures are three channels of
the latents: to decode them would cost both the same. Each is measured in a process of its own, in turn: the peak, and
seconds of the processor, so that what else the machine does counts for neither; on a GPU those of the clock.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from tqdm import tqdm

from evaluation.host import Extension, device
from evaluation.summary import aligned

from . import diffusers_loop, models
from .machine import as_list, describe_machine, in_own_process, record
from .memory import peak, used
from .models import Files
from .task import CFG, Elapsed, make_task
from .training_reference import CLIP_RANGE, KL_WEIGHT, NOISE_LEVEL, Reference

OURS, REFERENCE = "RLG", "diffusers + PEFT"
WAYS = {"all activations kept": False, "checkpointed blocks": True}
"""What of the blocks stays in memory for the backward pass → whether it is only what goes in."""
LATENT, STEPS, GROUPS, GROUP_SIZE, UPDATES = 32, 4, 2, 2, 2
AIMS = (0.75, 0.8)
"""Of the ratios of seconds and of peaks."""
_RATE = 3e-4


@dataclass(frozen=True)
class Cost:
    """Of iterations after the first: seconds of each, and bytes at the peak, without the program's own."""

    seconds: list[float]
    peak: int


class _ThreeChannels:
    """In the place of a VAE."""

    patcher = ModelPatcher(torch.nn.Identity(), torch.device("cpu"), torch.device("cpu"))

    def spacial_compression_encode(self) -> int:
        return 8

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].movedim(1, -1)


class _Mean:
    """A reward that costs nothing: the mean of the first channel."""

    name, unit, range, source = "mean", "", (-1e9, 1e9), "benchmarks"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See `Reward.score`."""
        return images[..., 0].mean(dim=(1, 2))


def compare(host: Path, on_cpu: bool, depth: int, rounds: int, threads: int | None) -> None:
    """Measure both, show the table and write it to the results."""
    costs: dict[str, dict[str, list[Cost]]] = {way: {OURS: [], REFERENCE: []} for way in WAYS}
    order = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="rlg-bench-") as folder, tqdm(total=2 * rounds * len(WAYS)) as bar:
        with torch.inference_mode():
            files = models.write_files(Path(folder), depth, Extension())
        for _ in range(rounds):
            for way, checkpointing in WAYS.items():
                for name in order.sample([OURS, REFERENCE], 2):
                    bar.set_description_str(f"{name}, {way}")
                    cost = in_own_process(host, on_cpu, _measured, name, files, checkpointing, threads)
                    costs[way][name].append(cost)
                    bar.update()
    _write(depth, costs)


def _measured(name: str, files: Files, checkpointing: bool, threads: int | None) -> Cost:
    if threads:
        torch.set_num_threads(threads)
    before = used()
    iterate = _ours(files, checkpointing) if name == OURS else _theirs(files, checkpointing)
    seconds = []
    with peak() as highest:
        for _ in range(3):
            with Elapsed() as elapsed:
                iterate()
            seconds.append(elapsed.cpu if device().type == "cpu" else elapsed.wall)
    return Cost(seconds[1:], highest.bytes - before)


def _ours(files: Files, checkpointing: bool) -> Callable[[], Any]:
    module = Extension().module
    task, width = make_task(LATENT, GROUP_SIZE, STEPS), 8 * LATENT
    prompts = module("training.policy.prompts").Prompts(
        ("a", "b"), (task.conditioning(task.positive),) * 2, task.conditioning(task.negative)
    )
    of = module("training.task").Task(models.load_model(files.base), _ThreeChannels(), prompts, _Mean(), width, width)
    settings = {"cfg": CFG, "noise_level": NOISE_LEVEL, "kl_weight": KL_WEIGHT, "clip_range": CLIP_RANGE}
    settings |= {"steps": STEPS, "groups": GROUPS, "group_size": GROUP_SIZE, "updates": UPDATES}
    method = replace(module("training.methods.presets").FLOW_GRPO, **settings)
    rank = _rank(files)
    own = module("training.trainer").Settings(_RATE, rank, batch_size=GROUP_SIZE, checkpointing=checkpointing)
    iterations = module("training.trainer").Trainer(of, method, own).iterate(10**6)
    return lambda: next(iterations)


def _theirs(files: Files, checkpointing: bool) -> Callable[[], Any]:
    model = diffusers_loop.load_transformer(files.base, files.adapter)
    if checkpointing:
        model.get_base_model().enable_gradient_checkpointing()
    reference = Reference(model, make_task(LATENT, GROUP_SIZE, STEPS), CFG, _RATE)
    return lambda: reference.iterate(GROUPS, UPDATES, lambda latents: latents[:, 0].mean(dim=(1, 2)))


def _rank(files: Files) -> int:
    return json.loads((files.adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]


def _write(depth: int, costs: dict[str, dict[str, list[Cost]]]) -> None:
    machine = describe_machine()
    clock = "processor seconds" if machine["device"] == "cpu" else "seconds"
    header = ["", f"{clock} an iteration", "MiB at the peak"]
    rows = []
    for way, of_way in costs.items():
        found = {name: _medians(of_name) for name, of_name in of_way.items()}
        rows += [[f"{name}, {way}", f"{seconds:.2f}", f"{peak / 2**20:.0f}"] for name, (seconds, peak) in found.items()]
        ratios = (ours / theirs for ours, theirs in zip(found[OURS], found[REFERENCE], strict=True))
        rows.append([f"ratio, {way}", *(f"{r:.2f} (aim ≤ {aim})" for r, aim in zip(ratios, AIMS, strict=True))])
    how = (
        f"Flow-GRPO at depth {depth}, {LATENT} × {LATENT} latents, cfg {CFG}, {STEPS} steps of which {STEPS - 1} are "
        f"trained, {GROUPS} groups of {GROUP_SIZE}, {UPDATES} updates"
    )
    introduction = f"# Training\n\n`python dev.py bench --training`: {how}."
    text = f"{introduction}\n\n{as_list(machine)}\n\n{aligned([header, *rows])}"
    of_all = {way: {name: [asdict(cost) for cost in of_name] for name, of_name in costs[way].items()} for way in costs}
    values = {"machine": machine, "depth": depth, "costs": of_all}
    record("training", text, values)
    print(text, flush=True)


def _medians(costs: Sequence[Cost]) -> tuple[float, float]:
    """Of seconds and of peaks."""
    return statistics.median(s for cost in costs for s in cost.seconds), statistics.median(cost.peak for cost in costs)
