"""Small tasks to train on, for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.sd
import torch

from demo.tiny_encoders import vae_state_dict
from demo.tiny_model import TinySD3, write_checkpoint
from pairs import FAMILIES, conds

SIDE = 64
"""Of pictures, in pixels: latents of 8 × 8."""
RANK = 4


class Redness:
    """Mean red minus mean of green and blue: a reward with a gradient and a known direction."""

    name, unit, range, source = "redness", "", (-1.0, 1.0), "tests"

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.gradient_score(images, prompts).detach().float().cpu()

    def gradient_score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        red, green, blue = images.unbind(-1)
        return (red - (green + blue) / 2).mean(dim=(1, 2))


def load(path: Path) -> tuple[Any, Any]:
    """MODEL and VAE of a checkpoint, as a loader node gives them: made in inference mode."""
    with torch.inference_mode():
        model, _, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=False)
    return model, vae


def tiny_checkpoint(models: Path, name: str) -> Path:
    return write_checkpoint(
        models / "checkpoints" / f"{name}.safetensors", TinySD3(), with_clip=False, dtype=torch.float32
    )


def prompts_of(training: SimpleNamespace, count: int) -> Any:
    """Random text embeddings under the names of prompts."""
    texts = tuple(f"prompt {number}" for number in range(count))
    return training.prompts.Prompts(texts, tuple(conds(10 + number) for number in range(count)), conds(2))


def texts_of(training: SimpleNamespace, family: str) -> Any:
    """Two prompts for the tiny model of a family, SD3 or another of `pairs.FAMILIES`."""
    if family == "SD3":
        return prompts_of(training, 2)
    made = [FAMILIES[family].task() for _ in range(2)]
    return training.prompts.Prompts(("a", "b"), tuple(m["positive"] for m in made), made[0]["negative"])


def four_channels() -> Any:
    """A VAE of SD1.5's kind: the tiny one with its first four channels."""
    weights = vae_state_dict()
    del weights["vae_scale"], weights["vae_shift"]
    weights["taesd_decoder.1.weight"] = weights["taesd_decoder.1.weight"][:, :4]
    for part in ("weight", "bias"):
        weights[f"taesd_encoder.14.{part}"] = weights[f"taesd_encoder.14.{part}"][:4]
    return comfy.sd.VAE(sd=weights)


def random_policy(training: SimpleNamespace, model: Any, size: float = 0.1) -> Any:
    """A LoRA on a model, whose matrices are all random; with `size` 0 it changes nothing."""
    with training.gradients.training_mode():
        targets = training.targets.attention_projections(model)
        policy = training.trainable_lora.Policy(targets, RANK, 2.0 * RANK, 3, torch.device("cpu"))
        for number, parameter in enumerate(policy.parameters.values()):
            if not parameter.any():
                parameter.data.normal_(std=size, generator=torch.Generator().manual_seed(number))
    return policy


def x0(
    training: SimpleNamespace,
    model: Any,
    policy: Any,
    of_family: Any,
    body: Callable | None = None,
    cfg: float = 2.0,
    checkpointing: bool = True,
    through_negative: bool = False,
) -> Any:
    """A prediction at the second of three sigmas, as training makes it, or what `body` makes of the run instead."""
    host = host_model(training, model, policy, of_family, cfg, checkpointing, through_negative)
    x = torch.randn(2, *of_family.latent, generator=torch.Generator().manual_seed(5))
    with training.gradients.training_mode():
        return host.run(0, x.shape, body or (lambda run: run.x0(x * run.sigmas[1], 1)))


def host_model(
    training: SimpleNamespace,
    model: Any,
    policy: Any,
    of_family: Any,
    cfg: float,
    checkpointing: bool,
    through_negative: bool = False,
) -> Any:
    """The model with the policy, on a prompt of the family and three sigmas."""
    with training.gradients.training_mode():  # in which prompts are encoded, too
        inputs = of_family.task()
        prompts = SimpleNamespace(positive=[inputs["positive"]], negative=inputs["negative"])
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "sgm_uniform", 3).clone()
    return training.host_model.HostModel(model, policy, prompts, cfg, sigmas, checkpointing, through_negative)
