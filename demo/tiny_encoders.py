"""The untrained CLIP-L text encoder and the 16-channel VAE of the small SD3.5-type checkpoint.

Both are the same in every checkpoint, as real checkpoints of one family share theirs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLIP_WIDTH, CLIP_LAYERS, CLIP_VOCABULARY, CLIP_POSITIONS = 768, 12, 49408, 77
LAYER_SIZE = 0.1
"""Size of what a layer of CLIP-L adds to its input, whose size is 1 at first."""

LATENT_CHANNELS = 16
VAE_WIDTH = 64

# What the host does to SD3 latents before they reach a VAE, undone inside a TAESD-type one.
LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609

COLOUR_GAIN = 0.1
"""Change of colour, on 0…1, per unit of latent: a projected latent of 5 reaches black or white."""


def clip_l_state_dict() -> dict[str, Tensor]:
    """CLIP-L under the names of `transformers`, fp16, 246 MB, the same on every machine.

    Random, but fit to be read: the token and its position dominate each output, and the layers add a little of what
    stands before it (with the usual size of the layers, the words would drown in noise of their own making).
    """
    generator = torch.Generator().manual_seed(0)
    sd: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, std: float) -> None:
        sd[name] = (torch.randn(shape, generator=generator) * std).half()

    def linear(name: str, out_features: int, in_features: int, size: float = 1.0) -> None:
        normal(f"{name}.weight", out_features, in_features, std=size / math.sqrt(in_features))
        normal(f"{name}.bias", out_features, std=0.05 * size)

    def layer_norm(name: str) -> None:
        sd[f"{name}.weight"] = torch.ones(CLIP_WIDTH, dtype=torch.float16)
        sd[f"{name}.bias"] = torch.zeros(CLIP_WIDTH, dtype=torch.float16)

    normal("text_model.embeddings.token_embedding.weight", CLIP_VOCABULARY, CLIP_WIDTH, std=1.0)
    normal("text_model.embeddings.position_embedding.weight", CLIP_POSITIONS, CLIP_WIDTH, std=0.5)
    for index in range(CLIP_LAYERS):
        layer = f"text_model.encoder.layers.{index}"
        layer_norm(f"{layer}.layer_norm1")
        for projection in ("q_proj", "k_proj", "v_proj"):
            linear(f"{layer}.self_attn.{projection}", CLIP_WIDTH, CLIP_WIDTH)
        linear(f"{layer}.self_attn.out_proj", CLIP_WIDTH, CLIP_WIDTH, LAYER_SIZE)
        layer_norm(f"{layer}.layer_norm2")
        linear(f"{layer}.mlp.fc1", 4 * CLIP_WIDTH, CLIP_WIDTH)
        linear(f"{layer}.mlp.fc2", CLIP_WIDTH, 4 * CLIP_WIDTH, LAYER_SIZE)
    layer_norm("text_model.final_layer_norm")
    sd["text_projection.weight"] = torch.eye(CLIP_WIDTH, dtype=torch.float16)
    return sd


def clip_l_in_checkpoint() -> dict[str, Tensor]:
    """CLIP-L under the names of ComfyUI's SD3 checkpoints."""
    prefix = "text_encoders.clip_l."
    sd = {f"{prefix}transformer.{key}": tensor for key, tensor in clip_l_state_dict().items()}
    return sd | {f"{prefix}logit_scale": torch.tensor(4.6055)}


def vae_state_dict() -> dict[str, Tensor]:
    """A TAESD-type VAE, fp16, 5 MB: a fixed projection between 16 latent channels and colour, with smooth resizing.

    The full layout of TAESD is there, because the host expects its keys; its residual blocks pass their input on.
    Decoding what was encoded gives a blurred copy of the picture.
    """
    generator = torch.Generator().manual_seed(0)
    colours = torch.linalg.qr(torch.randn(LATENT_CHANNELS, 3, generator=generator))[0].T  # (3, 16), orthonormal
    resize = torch.eye(VAE_WIDTH)
    sd = {"vae_scale": torch.tensor(LATENT_SCALE), "vae_shift": torch.tensor(LATENT_SHIFT)}

    def conv(name: str, matrix: Tensor, bias: Tensor | None = None, *, blur: bool = False) -> None:
        """A 3 × 3 convolution that applies `matrix` (out, in) to each pixel, or to a blur of its neighbourhood."""
        line = torch.tensor([0.25, 0.5, 0.25] if blur else [0.0, 1.0, 0.0])
        sd[f"{name}.weight"] = matrix[:, :, None, None] * torch.outer(line, line)
        if bias is not None:
            sd[f"{name}.bias"] = bias

    def blocks(name: str, *indices: int) -> None:
        for index in indices:
            for layer in (0, 2, 4):
                conv(f"{name}.{index}.conv.{layer}", torch.zeros(VAE_WIDTH, VAE_WIDTH), torch.zeros(VAE_WIDTH))

    conv("taesd_encoder.0", _signed(torch.eye(3)), _signed(torch.full((3, 1), -0.5))[:, 0])
    for index in (2, 6, 10):
        conv(f"taesd_encoder.{index}", resize, blur=True)
    conv("taesd_encoder.14", _signed(colours).T / COLOUR_GAIN, torch.zeros(LATENT_CHANNELS))
    blocks("taesd_encoder", 1, 3, 4, 5, 7, 8, 9, 11, 12, 13)

    conv("taesd_decoder.1", _signed(colours) * COLOUR_GAIN, torch.zeros(VAE_WIDTH), blur=True)
    for index in (7, 12, 17):
        conv(f"taesd_decoder.{index}", resize, blur=True)
    conv("taesd_decoder.19", _signed(torch.eye(3)).T, torch.full((3,), 0.5))
    blocks("taesd_decoder", 3, 4, 5, 8, 9, 10, 13, 14, 15, 18)
    return {key: tensor.half() for key, tensor in sd.items()}


def _signed(matrix: Tensor) -> Tensor:
    """(3, n) → (64, n): the rows, then their negatives, so that both signs survive the ReLUs; the rest is zero."""
    return torch.nn.functional.pad(torch.cat([matrix, -matrix]), (0, 0, 0, VAE_WIDTH - 2 * len(matrix)))
