"""A training loop that says how far it is, keeps a checkpoint and goes on from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from files.replacing import replacing

SAVE_EVERY = 60.0  # seconds
SAY_EVERY = 10.0


Step = Callable[[int, torch.Generator], dict[str, float]]
"""(index, random stream of this step) → numbers worth logging."""


def train(checkpoint: Path, steps: int, seed: int, state: Mapping[str, Any], step: Step) -> list[dict[str, float]]:
    """Run `step` for 0 … steps − 1, or from the step after the one that `checkpoint` holds.

    Every step draws from a stream named by `seed` and its index, so that a run that was stopped and resumed equals
    one that was not. `state` is what to keep: modules, optimisers, or anything else with a state_dict. Returns what the
    steps reported, one entry each.
    """
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["seed"] != seed:
            raise ValueError(f"{checkpoint} is of seed {saved['seed']}, not {seed}; delete it to start anew.")
        for name, part in state.items():
            part.load_state_dict(saved["state"][name])
        history = saved["history"]
        print(f"Going on after step {len(history)} of {steps} from {checkpoint}", flush=True)

    started = said = kept = time.monotonic()
    first = len(history)
    for index in range(first, steps):
        generator = torch.Generator().manual_seed((seed << 32) + index)
        history.append(step(index, generator))
        now = time.monotonic()
        if now - said > SAY_EVERY or index == steps - 1:
            said = now
            _say(history, steps, (now - started) / (index + 1 - first))
        if now - kept > SAVE_EVERY or index == steps - 1:
            kept = now
            parts = {name: part.state_dict() for name, part in state.items()}
            with replacing(checkpoint) as temporary:
                torch.save({"seed": seed, "history": history, "state": parts}, temporary)
    return history


def cosine(index: int, steps: int, warm_up: int = 100) -> float:
    """Share of the learning rate at a step: up in a line over `warm_up` steps, then down to 0 as a cosine."""
    if index < warm_up:
        return (index + 1) / warm_up
    share = (index - warm_up) / max(1, steps - warm_up)
    return 0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * share)))


def _say(history: list[dict[str, float]], steps: int, seconds: float) -> None:
    recent = history[-50:]
    means = {key: sum(entry[key] for entry in recent) / len(recent) for key in recent[-1]}
    numbers = "  ".join(f"{key} {value:.4g}" for key, value in means.items())
    left = seconds * (steps - len(history)) / 60
    print(f"step {len(history)}/{steps}  {numbers}  {seconds:.2f} s/step, {left:.0f} min left", flush=True)
