"""Tiny base and tuned models for the tests, built the ways a user would."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from safetensors.torch import load_file, save_file

from demo.tiny_model import TinySD3, write_checkpoint, write_peft_adapter

SIZE = 16  # side of the latents
TOKENS = 12
CLOSE = 1e-5  # largest difference allowed between two float32 ways to the same result, relative to the largest value
SAMPLING = {"seed": 7, "steps": 5, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal"}


def write_model(models: Path, name: str, config: TinySD3 | None = None) -> Path:
    """A float32 checkpoint of the denoiser alone, in a host's models folder."""
    return write_checkpoint(
        models / "checkpoints" / f"{name}.safetensors",
        config or TinySD3(),
        with_clip=False,
        with_vae=False,
        dtype=torch.float32,
    )


def write_lora(models: Path, name: str, config: TinySD3 | None = None, **adapter: Any) -> Path:
    """A PEFT adapter folder in a host's models folder."""
    return write_peft_adapter(models / "loras" / name, config or TinySD3(), **adapter)


def as_single_file(folder: Path, file: Path) -> Path:
    """The same adapter as one file that stock loaders apply in full: scale in alpha tensors, no config."""
    weights = load_file(folder / "adapter_model.safetensors")
    for key in [k for k in weights if k.endswith(".lora_A.weight")]:
        rank = weights[key].shape[0]
        weights[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(2.0 * rank)
    save_file(weights, file)
    return file


def load_checkpoint(path: Path) -> Any:
    """The MODEL of a checkpoint: a new set of weights at each call."""
    model, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)
    return model


_PARAMS = {
    "flux": FluxParams, "flux2": FluxParams, "chroma": ChromaParams, "chroma_radiance": ChromaRadianceParams,
    "hunyuan_video": HunyuanVideoParams,
}  # fmt: skip
"""What builds a network by parameters of a fixed set."""


@dataclass(frozen=True)
class Family:
    """A model family as tiny as the host's configuration for it allows.

    Attributes:
        config: name of the host's class for the family.
        unet_config: what its model is built with.
        latent: shape of one empty latent.
        text, pooled: widths of its prompts; no pooled one where 0.
        marks: weights by which the host tells a kind of the family in a checkpoint.
    """

    config: str
    unet_config: dict[str, Any]
    latent: tuple[int, ...]
    text: int
    pooled: int = 0
    marks: dict[str, torch.Tensor] = field(default_factory=dict)

    def load(self, seed: int = 0) -> Any:
        """A MODEL with random weights: a new set of weights at each call."""
        config = getattr(comfy.supported_models, self.config)(self._known_config())
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(dict(self.marks))
        generator = torch.Generator().manual_seed(seed)
        for weight in model.diffusion_model.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) / (weight[0].numel() ** 0.5 + 1)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, cpu, cpu)

    def _known_config(self) -> dict[str, Any]:
        """Older hosts do not know all that newer ones ask for."""
        params = _PARAMS.get(self.unet_config.get("image_model"))
        known = params and {"image_model", *(each.name for each in fields(params))}
        return {name: value for name, value in self.unet_config.items() if known is None or name in known}

    def task(self, **changes: Any) -> dict[str, Any]:
        """As `task`, with prompts and latents of this family."""
        generator = torch.Generator().manual_seed(3)

        def prompt() -> list:
            pooled = {"pooled_output": torch.randn(1, self.pooled, generator=generator)} if self.pooled else {}
            return [[torch.randn(1, 8, self.text, generator=generator), pooled]]

        inputs = {"positive": prompt(), "negative": prompt(), "latent_image": {"samples": torch.zeros(1, *self.latent)}}
        return task(**{**inputs, **changes})


_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "num_res_blocks": [1], "channel_mult": [1],
    "transformer_depth": [1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1], "context_dim": 32,
    "use_spatial_transformer": True, "use_temporal_attention": False, "disable_self_attentions": None,
}  # fmt: skip
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 48, "context_in_dim": 64,
    "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
_QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 1, "attention_head_dim": 128,
    "num_attention_heads": 1, "joint_attention_dim": 64,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 1,
    "text_dim": 64, "in_dim": 16, "out_dim": 16,
}  # fmt: skip
FAMILIES = {
    "SD1.5": Family(
        "SD15",
        {**_UNET, "model_channels": 32, "use_linear_in_transformer": False, "adm_in_channels": None},
        (4, SIZE, SIZE),
        text=32,
    ),
    "SD2.x, v-prediction": Family(
        "SD20",
        {**_UNET, "model_channels": 64, "use_linear_in_transformer": True, "adm_in_channels": None},
        (4, SIZE, SIZE),
        text=32,
        marks={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 8)},
    ),
    "SDXL": Family(
        "SDXL",
        {
            **_UNET, "model_channels": 64, "use_linear_in_transformer": True, "adm_in_channels": 2816,
            "num_classes": "sequential",
        },
        (4, SIZE, SIZE),
        text=32,
        pooled=1280,
    ),
    "Flux": Family("Flux", _FLUX, (16, SIZE, SIZE), text=64, pooled=48),
    "Qwen-Image": Family("QwenImage", _QWEN, (16, 1, SIZE, SIZE), text=64),
    "Wan": Family("WAN21_T2V", _WAN, (16, 2, SIZE, SIZE), text=64),
}  # fmt: skip


def tiny_unet() -> Any:
    """An SD1.5-type MODEL (eps prediction)."""
    return FAMILIES["SD1.5"].load()


def conds(seed: int, batch: int = 1, **extra: Any) -> list:
    """A CONDITIONING of SD3's shape with random text."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, TOKENS, 4096, generator=generator)
    return [[text, {"pooled_output": torch.randn(batch, 2048, generator=generator), **extra}]]


def empty_latent(batch: int = 1, size: int = SIZE) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(batch, 16, size, size)}


def picture_latent(batch: int = 1, seed: int = 11) -> dict[str, torch.Tensor]:
    """A latent that is not empty, as an encoded picture."""
    return {"samples": torch.randn(batch, 16, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))}


def task(batch: int = 1, **changes: Any) -> dict[str, Any]:
    """The inputs that a sampler node needs besides its models."""
    inputs = {"positive": conds(1), "negative": conds(2), "latent_image": empty_latent(batch), "denoise": 1.0}
    return {**SAMPLING, **inputs, **changes}


class Counter:
    """Counts evaluated (picture, cond) pairs on a MODEL's weights, and the model calls they took."""

    def __init__(self, model: Any) -> None:
        self.rows = self.calls = 0
        self.handle = model.model.diffusion_model.register_forward_pre_hook(self.count)

    def count(self, _: Any, args: tuple) -> None:
        self.rows += args[0].shape[0]
        self.calls += 1


class KV_Attn_Input:
    """Called as newer hosts call the one of Flux KV Cache; as there, it is the same on a clone of its MODEL."""

    def __deepcopy__(self, _: Any) -> KV_Attn_Input:
        return self

    def __call__(self, q: Any, k: Any, v: Any, extra_options: Any, **_: Any) -> Any:
        return {"q": q, "k": k, "v": v}


def with_kv_cache(model: Any) -> Any:
    """A clone of a MODEL with a cache of its own."""
    cached = model.clone()
    cached.set_model_attn1_patch(KV_Attn_Input())
    return cached


class StoredBits:
    """Compares the stored weight of a module with what it was, at each of its calls."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._before = self._of(module)
        self.unchanged: list[bool] = []
        self._handle = module.register_forward_pre_hook(self._compare)

    def _compare(self, module: torch.nn.Module, _: tuple) -> None:
        self.unchanged.append(torch.equal(self._of(module), self._before))

    @staticmethod
    def _of(module: torch.nn.Module) -> torch.Tensor:
        return getattr(module.weight, "_qdata", module.weight).detach().view(torch.uint8).clone()


def matrices(low_rank: Any) -> list[torch.Tensor]:
    """All that a `LowRank` holds; none where there is no such part."""
    return [] if low_rank is None else [low_rank.down, *(up for _, up in low_rank.ups)]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of `b`."""
    assert torch.isfinite(b).all()
    return ((a - b).abs().max() / b.abs().max()).item()
