"""Pictures by ComfyUI, scored by the reward models: what a worker of a real evaluation does.

To be imported once the host is open. The rooms are here as packages of the repository; the host has them once more, as
parts of the extension, whose nodes are run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import comfy.samplers
import numpy as np
import torch

from evaluation.errors import EvaluationError, refusing
from evaluation.host import Extension, device, host_arguments, host_version
from evaluation.models import load_diffusion_model, load_models, model_paths
from evaluation.plan import Batch, Pair, Plan
from evaluation.worker import Picture
from files.names import is_of_the_system
from files.pictures import png
from rewards import diversity, registry
from rewards.pixels import to_bytes, to_image
from rewards.protocol import Reward, check_prompts
from rlg_sampler.guidance.guided_model import Guidance, guided_model
from rlg_sampler.guidance.settings import GuidanceSettings
from rlg_sampler.ksampler_inputs import KSamplerInputs, latent_shape
from rlg_sampler.schedules.schedule import constant
from rlg_sampler.sweeps.sweep import Cell, Task, sweep
from rlg_sampler.weights.peft_config import CONFIG_NAME

_SAMPLES, _SAMPLE_BYTES = 64, 2**16
"""Of a file, for its fingerprint."""


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
        self._check()
        self._cells = [Cell(cell.schedule, str(cell)) for cell in plan.cells]
        self._rewards = [self._reward(index) for index in range(len(plan.rewards))]
        with refusing("diversity", ValueError, OSError, ImportError):
            self._measure = diversity.measure(plan.diversity.name, plan.diversity.file)
        self._check_prompts()
        self._loaded: tuple[int, tuple[Any, Any, Any, Any]] | None = None

    def describe(self) -> dict[str, Any]:
        where = device()
        return {
            "ComfyUI": host_version(),
            "arguments of ComfyUI": host_arguments(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
            "files": {name: _fingerprint(path) for name, path in self._files().items()},
        }

    @torch.inference_mode()
    def render(self, batch: Batch) -> list[Picture]:
        model, clip, vae, negative = self._models(batch.pair)
        with refusing("", ValueError):
            # Not by EmptyLatentImage, which takes every VAE for one that makes a pixel an eighth.
            empty = torch.zeros(1, *latent_shape(model, vae, self._plan.width, self._plan.height))
        pictures: list[tuple[Callable[..., Picture], Future[bytes]]] = []
        compressor = ThreadPoolExecutor(1)  # meanwhile a GPU scores, and computes the next pictures
        try:
            for number, prompt in enumerate(batch.prompts, start=batch.first):
                (positive,) = self._extension.run_node("CLIPTextEncode", clip=clip, text=prompt)
                # (seeds, cells, height, width, 3) uint8
                images = np.stack(
                    [self._sampled(model, vae, positive, negative, empty, seed) for seed in self._plan.seeds]
                )
                files = [[compressor.submit(png, image) for image in of_seed] for of_seed in images]
                scores = np.stack([self._scores(of_seed, prompt) for of_seed in images])
                for cell in range(len(self._cells)):
                    apart = float(self._measure(to_image(images[:, cell])).mean()) if len(images) > 1 else None
                    for seed in range(len(images)):
                        values = tuple(scores[seed, :, cell].tolist())
                        picture = partial(Picture, number, seed, cell, scores=values, diversity=apart)
                        pictures.append((picture, files[seed][cell]))
            return [picture(png=file.result()) for picture, file in pictures]
        finally:
            compressor.shutdown(cancel_futures=True)  # after an error nobody takes the others

    def _sampled(
        self, model: Any, vae: Any, positive: list, negative: list, empty: torch.Tensor, seed: int
    ) -> np.ndarray:
        """(cells, height, width, 3) uint8"""
        plan = self._plan
        inputs = KSamplerInputs(
            seed, plan.steps, plan.cfg, plan.sampler, plan.scheduler, positive, negative, {"samples": empty}, 1.0
        )
        latent = sweep([Task(model, inputs)], self._cells, lambda total: lambda *progress: None)
        # One by one: how many the VAE takes at a time depends on the free memory.
        decoded = [vae.decode(samples[None]) for samples in latent["samples"]]
        # VAEs of videos, which Qwen-Image has too, give a picture as its only frame.
        return np.stack([to_bytes(images.reshape(images.shape[-3:])) for images in decoded])

    def _scores(self, images: np.ndarray, prompt: str) -> np.ndarray:
        """(rewards, cells) of pictures, (cells, height, width, 3) uint8, as they are in their files."""
        scores = np.empty((len(self._rewards), len(images)))
        for index, reward in enumerate(self._rewards):
            with refusing(f"rewards[{index}]", ValueError):
                # One by one, for the same reason as in decoding.
                scores[index] = [reward.score(to_image(image[None]), [prompt]).item() for image in images]
            if not np.isfinite(scores[index]).all():
                raise EvaluationError(f"rewards[{index}]: {reward.name} gives no finite number; check its weights.")
        return scores

    def _models(self, index: int) -> tuple[Any, Any, Any, Any]:
        """Guided MODEL, CLIP, VAE and negative prompt of a pair; the last one is kept."""
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # frees the other before this is loaded
            pair, run_node = self._plan.pairs[index], self._extension.run_node
            # What a damaged or unknown file leads to has no common class.
            with refusing(f"pairs[{index}]", Exception):
                base, clip, vae = load_models(pair, self._extension)
                if pair.lora is not None:
                    tuned, _ = run_node("RLGLoadLora", model=base, lora_name=pair.lora, strength=pair.lora_strength)
                elif pair.tuned_diffusion_model is not None:
                    tuned = load_diffusion_model(pair.tuned_diffusion_model, pair.weight_dtype, self._extension)
                else:
                    tuned, *_ = run_node("CheckpointLoaderSimple", ckpt_name=pair.tuned_checkpoint)
                # Any schedule that needs guidance: the cells bring their own.
                model = guided_model(base, tuned, GuidanceSettings(constant(1.0), self._plan.tuned_cfg))
                Guidance.on(model).tuned[-1].pair.check_differs()
            (negative,) = run_node("CLIPTextEncode", clip=clip, text=self._plan.negative)
            self._loaded = index, (model, clip, vae, negative)
        return self._loaded[1]

    def _check(self) -> None:
        """Everything that can be known before the first picture."""
        self._files()
        for name, known in (
            ("sampler", comfy.samplers.KSampler.SAMPLERS),
            ("scheduler", comfy.samplers.KSampler.SCHEDULERS),
        ):
            if (value := getattr(self._plan, name)) not in known:
                raise EvaluationError(f"{name}: there is no '{value}'; choose one of {', '.join(known)}.")

    def _check_prompts(self) -> None:
        if not self._plan.prompts.file.is_file():  # on another machine: such a prompt is found when its turn comes
            return
        prompts = self._plan.prompts.read()
        for index, reward in enumerate(self._rewards):
            with refusing(f"rewards[{index}]", ValueError):
                check_prompts(reward, prompts)

    def _files(self) -> dict[str, Path]:
        """Of models and weights, by what the plan calls them.

        Raises:
            EvaluationError: one is not there.
        """
        found: dict[str, Path] = {}
        for index, pair in enumerate(self._plan.pairs):
            with refusing(f"pairs[{index}]", ValueError, EvaluationError):
                found |= self._files_of(pair)
        for index, reward in enumerate(self._plan.rewards):
            with refusing(f"rewards[{index}]", ValueError, OSError):
                found |= _called(reward.name, registry.files_of(reward.name, reward.file))
        with refusing("diversity", ValueError, OSError):
            measure = self._plan.diversity
            found |= _called(measure.name, diversity.files_of(measure.name, measure.file))
        return found

    def _files_of(self, pair: Pair) -> dict[str, Path]:
        """Raises ValueError or EvaluationError: one is not there."""
        found = model_paths(pair)
        if pair.lora is not None:
            name = f"loras/{pair.lora}"  # a checkpoint may have the same
            found[name] = path = self._extension.module("nodes.loaders").lora_path(pair.lora)
            config = path.with_name(CONFIG_NAME)
            if config.is_file():
                found[f"{name}, {config.name}"] = config
        return found

    def _reward(self, index: int) -> Reward:
        reward = self._plan.rewards[index]
        with refusing(f"rewards[{index}]", ValueError, OSError, ImportError):
            return registry.load(reward.name, reward.file)


def _called(name: str, files: tuple[Path, ...]) -> dict[str, Path]:
    """Files of what has that name in the plan, the first of which are its weights."""
    return {name if number == 0 else f"{name}, {path.name}": path for number, path in enumerate(files)}


def _fingerprint(path: Path) -> str:
    """Of a file, or of all in a folder: sizes and samples of the contents. All of them would take minutes."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and not is_of_the_system(file.name):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as content:
                for sample in range(_SAMPLES):
                    content.seek(size * sample // _SAMPLES)
                    digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
