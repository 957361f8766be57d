"""What RLGApproximate saves, and what it costs: time on random weights, error and reward on the demo's trained pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import folder_paths
import numpy as np
import torch
from skimage.metrics import structural_similarity

from demo.rewards import composition
from demo.run import demo_models
from demo.scenes import SIDE, prompts
from demo.trained_pair import CHECKPOINT, LORAS
from evaluation.host import Extension
from rewards.intervals import Estimate, bootstrap
from rewards.pixels import to_bytes

from .methods import OURS, PLAIN, plain_cfg, rlg_guider
from .models import Files, load_model, load_tuned
from .task import SCALE, make_task
from .timing import Timings, interleaved

Inputs = Mapping[str, Any]
EXACT: Inputs = {"direction_every": 1, "shared_uncond": False, "start_percent": 0.0, "end_percent": 1.0}
MODES: Mapping[str, Inputs] = {
    "direction at one of 2 steps": {"direction_every": 2},
    "direction at one of 3 steps": {"direction_every": 3},
    "direction at one of 5 steps": {"direction_every": 5},
    "direction at one of 3 steps, from 0.2 on": {"direction_every": 3, "start_percent": 0.2},
    "shared uncond": {"shared_uncond": True},
    "shared uncond, direction at one of 3 steps": {"direction_every": 3, "shared_uncond": True},
}
STEPS = 28  # the default of RLGKSampler
_LATENT, _ROUNDS, _SECONDS = 32, 5, 120.0
_CFGS = (1.0, 2.0)
"""The demo's pair was tuned without CFG; with it, there is an uncond to share."""
_PROMPTS, _SEEDS, _PROMPT_SEED = 12, 4, 7


@dataclass(frozen=True)
class Error:
    """A mode against exact guidance, with the same noise.

    Attributes:
        latent: root mean square of the difference of latents, relative to that of the latents.
        ssim: mean structural similarity of the pictures.
        reward: exact reward, and what the mode adds to it.
    """

    latent: float
    ssim: float
    exact_reward: Estimate
    reward: Estimate


def measure_times(files: Files, extension: Extension, progress: Callable[[str], None]) -> Timings:
    """A step of each mode beside plain CFG and exact guidance."""
    base = load_model(files.base)
    tuned = load_tuned(base, files.adapter, extension)
    methods = {PLAIN: plain_cfg(base), OURS: rlg_guider(base, tuned, extension)}
    for name, mode in MODES.items():
        methods[name] = rlg_guider(base, tuned, extension, approximate=_approximation(extension, mode))
    task = make_task(_LATENT, 1, STEPS)
    for name, method in methods.items():
        progress(f"approximations: warming up, {name}")
        method.sample(make_task(_LATENT, 1, 2))
    return interleaved(methods, task, _ROUNDS, _SECONDS, lambda n: progress(f"approximations: round {n} of {_ROUNDS}"))


def measure_errors(extension: Extension, progress: Callable[[str], None]) -> dict[float, dict[str, Error]]:
    """CFG → mode → its error on the demo's composition pair."""
    models = demo_models()
    for kind in ("checkpoints", "loras"):
        folder_paths.add_model_folder_path(kind, str(models / kind), is_default=True)
    pair = _Pair(extension)
    found: dict[float, dict[str, Error]] = {}
    for cfg in _CFGS:
        progress(f"approximations: {_PROMPTS} × {_SEEDS} pictures at CFG {cfg:g}, exact")
        exact = pair.sampled(cfg, EXACT)
        found[cfg] = {}
        for name, mode in MODES.items():
            if cfg == 1.0 and mode.get("shared_uncond"):
                continue
            progress(f"approximations: {_PROMPTS} × {_SEEDS} pictures at CFG {cfg:g}, {name}")
            found[cfg][name] = _error(pair.sampled(cfg, mode), exact)
    return found


@dataclass(frozen=True)
class _Sampled:
    """Of each prompt and seed: latents, pictures (prompts, seeds, height, width, 3) uint8, and their rewards."""

    latents: np.ndarray
    pictures: np.ndarray
    rewards: np.ndarray


class _Pair:
    """The demo's composition pair, and held-out prompts."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension
        self._base, self._clip, self._vae = extension.run_node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
        self._tuned, _ = extension.run_node(
            "RLGLoadLora", model=self._base, lora_name=LORAS["composition"], strength=1.0
        )
        self._prompts = prompts(_PROMPT_SEED, _PROMPTS, held_out=True)

    def sampled(self, cfg: float, mode: Inputs) -> _Sampled:
        approximation, negative = _approximation(self._extension, mode), self._encoded("")
        latents, pictures, rewards = [], [], []
        for index, prompt in enumerate(self._prompts):
            (latent,) = self._extension.run_node(
                "RLGKSampler", base=self._base, tuned=self._tuned, seed=1000 + index, steps=STEPS, cfg=cfg,
                sampler_name="euler", scheduler="normal", positive=self._encoded(prompt.text), negative=negative,
                latent_image={"samples": torch.zeros(_SEEDS, 16, SIDE // 8, SIDE // 8)}, denoise=1.0, scale=SCALE,
                approximate=approximation,
            )  # fmt: skip
            latents.append(latent["samples"].numpy())
            pictures.append(to_bytes(self._vae.decode(latent["samples"])))
            rewards.append([composition(picture, prompt).reward for picture in pictures[-1]])
        return _Sampled(np.stack(latents), np.stack(pictures), np.array(rewards))

    def _encoded(self, text: str) -> Any:
        return self._extension.run_node("CLIPTextEncode", clip=self._clip, text=text)[0]


def _error(of_mode: _Sampled, exact: _Sampled) -> Error:
    latent = np.sqrt(np.square(of_mode.latents - exact.latents).mean() / np.square(exact.latents).mean())
    pairs = zip(*(sampled.pictures.reshape(-1, SIDE, SIDE, 3) for sampled in (exact, of_mode)), strict=True)
    ssim = np.mean([structural_similarity(a, b, channel_axis=-1) for a, b in pairs])
    return Error(float(latent), float(ssim), bootstrap(exact.rewards), bootstrap(of_mode.rewards - exact.rewards))


def _approximation(extension: Extension, mode: Inputs) -> Any:
    return extension.run_node("RLGApproximate", **{**EXACT, **mode})[0]
