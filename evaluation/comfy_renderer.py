"""Pictures by ComfyUI, scored by the reward models: what a worker of a real evaluation does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.errors import EvaluationError
from evaluation.host import CPU_ARGUMENTS, Extension, HostSettings, add_model_folders, host_version, open_host
from evaluation.pictures import Picture
from evaluation.plan import Batch, Pair, Plan
from evaluation.statistics import pixel_distance
from sets.pictures import png, to_bytes


def make_renderer(plan: Plan, settings: HostSettings) -> ComfyRenderer:
    """Start ComfyUI in this process.

    Raises:
        EvaluationError: the host does not have what the plan asks for.
    """
    torch.set_num_threads(plan.threads)
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    open_host(settings.path, settings.arguments or (() if has_gpu else CPU_ARGUMENTS))
    add_model_folders(settings.path, settings.models)
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    return ComfyRenderer(plan, Extension())


class ComfyRenderer:
    """Every (prompt, seed) is one sweep over the plan's cells, in a batch of its own: what is computed next to it, or
    before it, does not change its last bit.

    Args:
        plan: what to make.
        extension: our nodes in the ComfyUI of this process.

    Raises:
        EvaluationError: the host does not have what the plan asks for.
    """

    def __init__(self, plan: Plan, extension: Extension) -> None:
        self._plan, self._extension = plan, extension
        self._sweep, self._guider = (extension.module(f"rlg_sampler.{name}") for name in ("sweep", "guider"))
        self._check()
        # The extension's own classes, not those of the plan's package.
        schedules = extension.module("rlg_sampler.schedule")
        self._constant = schedules.constant
        self._cells = [
            self._sweep.Cell(schedules.Schedule(**dataclasses.asdict(cell.schedule)), str(cell)) for cell in plan.cells
        ]
        self._rewards = [self._reward(index) for index in range(len(plan.rewards))]
        self._diversity = self._measure()
        self._loaded: tuple[int, tuple[Any, Any, Any, Any]] | None = None

    def describe(self) -> dict[str, Any]:
        files = {}
        for pair in self._plan.pairs:
            for path in self._files(pair):
                files[path.parent.name + "/" + path.name] = path.stat().st_size
        import comfy.model_management

        device = comfy.model_management.get_torch_device()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"ComfyUI": host_version(), "torch": torch.__version__, "device": name, "bytes of files": files}

    @torch.inference_mode()
    def render(self, batch: Batch) -> list[Picture]:
        model, clip, vae, negative = self._models(batch.pair)
        pictures: list[Picture] = []
        for number, prompt in enumerate(batch.prompts, start=batch.first):
            (positive,) = self._extension.run_node("CLIPTextEncode", clip=clip, text=prompt)
            # (seeds, cells, height, width, 3) uint8
            images = np.stack([self._sampled(model, vae, positive, negative, seed) for seed in self._plan.seeds])
            scores = np.stack([self._scores(of_seed, prompt) for of_seed in images])
            for cell in range(len(self._cells)):
                apart = self._diversity(images[:, cell]) if len(images) > 1 else None
                for seed in range(len(images)):
                    values = tuple(scores[seed, :, cell].tolist())
                    pictures.append(Picture(number, seed, cell, png(images[seed, cell]), values, apart))
        return pictures

    def _sampled(self, model: Any, vae: Any, positive: list, negative: list, seed: int) -> np.ndarray:
        """(cells, height, width, 3) uint8"""
        plan = self._plan
        (latent,) = self._extension.run_node("EmptyLatentImage", width=plan.width, height=plan.height, batch_size=1)
        latent = self._sweep.sweep(
            model, self._cells, seed, plan.steps, plan.cfg, plan.sampler, plan.scheduler, positive, negative, latent,
            1.0, lambda total: lambda *progress: None,
        )  # fmt: skip
        # One by one: how many the VAE takes at a time depends on the free memory.
        decoded = [vae.decode(samples[None]) for samples in latent["samples"]]
        return np.stack([to_bytes(images[0].cpu().numpy()) for images in decoded])

    def _scores(self, images: np.ndarray, prompt: str) -> np.ndarray:
        """(rewards, cells) of pictures, (cells, height, width, 3) uint8, as they are in their files."""
        tensor = torch.from_numpy(images).float() / 255.0
        scores = [reward.score(tensor, [prompt] * len(tensor)).numpy() for reward in self._rewards]
        return np.stack(scores) if scores else np.empty((0, len(images)))

    def _models(self, index: int) -> tuple[Any, Any, Any, Any]:
        """Guided MODEL, CLIP, VAE and negative prompt of a pair; the last one is kept."""
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # frees the other before this is loaded
            pair, run_node = self._plan.pairs[index], self._extension.run_node
            base, clip, vae = run_node("CheckpointLoaderSimple", ckpt_name=pair.checkpoint)
            if pair.lora is not None:
                tuned, _ = run_node("RLGLoadLora", model=base, lora_name=pair.lora, strength=pair.lora_strength)
            else:
                tuned, *_ = run_node("CheckpointLoaderSimple", ckpt_name=pair.tuned_checkpoint)
            try:
                # Any schedule that needs guidance: the cells bring their own.
                model = self._guider.guided_model(base, tuned, self._constant(1.0), self._plan.tuned_cfg)
            except ValueError as error:
                raise EvaluationError(f"pairs[{index}]: {error}") from None
            (negative,) = run_node("CLIPTextEncode", clip=clip, text=self._plan.negative)
            self._loaded = index, (model, clip, vae, negative)
        return self._loaded[1]

    def _check(self) -> None:
        """Everything that can be known before the first picture."""
        import comfy.samplers

        for index, pair in enumerate(self._plan.pairs):
            try:
                self._files(pair)
            except ValueError as error:
                raise EvaluationError(f"pairs[{index}]: {error}") from None
        for name, known in (
            ("sampler", comfy.samplers.KSampler.SAMPLERS),
            ("scheduler", comfy.samplers.KSampler.SCHEDULERS),
        ):
            if (value := getattr(self._plan, name)) not in known:
                raise EvaluationError(f"{name}: there is no '{value}'; choose one of {', '.join(known)}.")

    def _files(self, pair: Pair) -> list[Path]:
        """Raises ValueError: one is not there."""
        import folder_paths

        found = []
        for name in ("checkpoint", "tuned_checkpoint"):
            if file := getattr(pair, name):
                path = folder_paths.get_full_path("checkpoints", file)
                if path is None:
                    there = ", ".join(folder_paths.get_filename_list("checkpoints")) or "none"
                    raise ValueError(f"{name}: '{file}' is not in models/checkpoints (there: {there}); put it there.")
                found.append(Path(path))
        if pair.lora is not None:
            found.append(self._extension.module("nodes.loaders").lora_path(pair.lora))
        return found

    def _measure(self) -> Callable[[np.ndarray], float]:
        """Pictures of one prompt, (seeds, height, width, 3) uint8 → how different they are."""
        wanted = self._plan.diversity
        if wanted.name == "pixels":
            return pixel_distance
        try:
            of = self._extension.module("rewards.diversity").measure(wanted.name, wanted.file)
        except (ValueError, OSError, ImportError) as error:
            raise EvaluationError(f"diversity: {error}") from None
        return lambda pictures: float(of(torch.from_numpy(pictures).float() / 255.0).mean())

    def _reward(self, index: int) -> Any:
        reward = self._plan.rewards[index]
        try:
            return self._extension.module("rewards.registry").load(reward.name, reward.file)
        except (ValueError, OSError, ImportError) as error:
            raise EvaluationError(f"rewards[{index}]: {error}") from None
