"""The demo's base model: an MMDiT-X of three blocks, trained by flow matching on drawn scenes and signs.

Rectified flow as in SD3 (arXiv 2403.03206): x_t = (1 − σ) x0 + σ ε, the network predicts ε − x0, and σ is
logit-normal, then shifted by 3 as the host's sampler does. One caption in ten is empty, for CFG.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from PIL import Image
from torch import Tensor
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo.letters import draw_sign, random_sign
from demo.scenes import draw, random_prompt
from demo.tiny_encoders import CLIP_WIDTH, LATENT_CHANNELS
from demo.tiny_model import TinySD3
from demo.train.loop import cosine, train
from demo.train.precision import half_where_fast
from demo.train.text import Text, encoded
from files.replacing import replacing

CONFIG = TinySD3(depth=3, dual_attention_blocks=1, pos_embed_max_size=16)
SCENES, SIGNS, PICTURES_EACH = 8192, 4096, 3
"""Captions of either kind, and pictures of each."""
BATCH = 32
DROPPED_CAPTIONS = 0.1


@dataclass(frozen=True)
class Phase:
    """A part of the training, with a schedule of its learning rate of its own.

    Attributes:
        signs: share of the batch that is signs.
        wrong_scenes, wrong_signs: share of them that have the caption of another, as in data from the web. Now and then
            the model then draws what was not asked for, and a reward has something to put right.
    """

    steps: int
    rate: Callable[[int], float]
    signs: float = 0.0
    wrong_scenes: float = 0.0
    wrong_signs: float = 0.0


PHASES = (
    # A cosine of 13000 steps that is cut off by a fall to 0.
    Phase(8000, lambda index: 1e-3 * cosine(index, 13000, 300) * min(1.0, (8000 - index) / 1500)),
    Phase(2000, lambda index: 4e-4 * cosine(index, 2000), wrong_scenes=1 / 6),
    Phase(3000, lambda index: 8e-4 * cosine(index, 3500), signs=0.5),
    Phase(1500, lambda index: 4e-4 * cosine(index, 1500), signs=0.4, wrong_scenes=0.35, wrong_signs=0.5),
    Phase(6000, lambda index: 8e-4 * cosine(index, 6500), signs=0.25, wrong_scenes=0.1, wrong_signs=0.6),
    # As often as captions are wrong at last, about so often does the base draw something else. What it can draw at all
    # is learned before, and is what the tuned models have to come out of it.
    Phase(1500, lambda index: 5e-4 * cosine(index, 1500), signs=0.5, wrong_scenes=0.45, wrong_signs=0.35),
    Phase(8000, lambda index: 8e-4 * cosine(index, 8500), signs=0.25, wrong_signs=0.5),
    Phase(1500, lambda index: 5e-4 * cosine(index, 1500), signs=0.5, wrong_scenes=0.45, wrong_signs=0.35),
    Phase(1500, lambda index: 5e-4 * cosine(index, 1500), signs=0.4, wrong_scenes=0.66, wrong_signs=0.35),
)
SHIFT = 3.0
EMA = 0.999
LATENT_SIDE = 16


@dataclass(frozen=True)
class Data:
    """Latents (captions, PICTURES_EACH, 16, side, side) bfloat16; captions of scenes, of signs, then the empty one."""

    latents: Tensor
    text: Text


def build() -> SD3Transformer2DModel:
    """The network without the dimensions of the text that CLIP-L leaves empty; blocks start as the identity."""
    model = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        num_layers=CONFIG.depth,
        num_attention_heads=CONFIG.depth,
        joint_attention_dim=CLIP_WIDTH,
        caption_projection_dim=CONFIG.hidden,
        pooled_projection_dim=CLIP_WIDTH,
        pos_embed_max_size=CONFIG.pos_embed_max_size,
        dual_attention_layers=tuple(range(CONFIG.dual_attention_blocks)),
        qk_norm="rms_norm",
    )
    for name, parameter in model.named_parameters():
        if ".norm1" in name or name.startswith(("norm_out", "proj_out")):
            torch.nn.init.zeros_(parameter)
    return model


def velocity(model: torch.nn.Module, latents: Tensor, sigma: Tensor, text: Text) -> Tensor:
    """The network's prediction of ε − x0, float32. `sigma`: (batch,)."""
    # On a CPU the fused attention is the slower one, in its backward pass above all.
    with half_where_fast(), sdpa_kernel(SDPBackend.MATH):
        predicted = model(
            hidden_states=latents,
            timestep=1000 * sigma,
            encoder_hidden_states=text.tokens.float(),
            pooled_projections=text.pooled.float(),
            return_dict=False,
        )[0]
    return predicted.float()


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model, half as fast again where PyTorch finds a C++ compiler."""
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        print("No C++ compiler found: the training goes on without one, a third slower.", flush=True)
        return model
    return torch.compile(model)


def training_data(vae: AutoencoderTiny, folder: Path, seed: int, host: Path) -> Data:
    """Pictures drawn for random captions, encoded; kept in `folder`."""
    rng = np.random.default_rng(seed)
    scenes = [random_prompt(rng, held_out=False) for _ in range(SCENES)]
    drawn = [partial(draw, prompt, rng) for prompt in scenes]
    signs = [random_sign(rng, held_out=False) for _ in range(SIGNS)]
    drawn += [partial(draw_sign, sign, rng) for sign in signs]
    text = encoded([asked.text for asked in (*scenes, *signs)] + [""], folder, host)
    path = folder / f"latents_{seed}.pt"
    if not path.exists():
        latents = _encoded_pictures(vae, drawn)
        with replacing(path) as temporary:
            torch.save(latents, temporary)
    return Data(torch.load(path, weights_only=True), text)


@torch.inference_mode()
def _encoded_pictures(vae: AutoencoderTiny, drawn: Sequence[Callable[[], Image.Image]]) -> Tensor:
    found = torch.empty(len(drawn), PICTURES_EACH, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, dtype=torch.bfloat16)
    for index, picture in enumerate(drawn):
        pictures = np.stack([np.array(picture()) for _ in range(PICTURES_EACH)])
        batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        with half_where_fast():
            found[index] = vae.encoder(batch.to(memory_format=torch.channels_last))
        if index % 1000 == 999:
            print(f"pictures of {index + 1}/{len(drawn)} captions", flush=True)
    return found


def phase_at(index: int) -> tuple[Phase, int]:
    """The phase that a step belongs to, and the step's number in it."""
    for phase in PHASES:
        if index < phase.steps:
            return phase, index
        index -= phase.steps
    raise IndexError(index)


def _batch(data: Data, phase: Phase, generator: torch.Generator) -> tuple[Tensor, Text]:
    """x0 (BATCH, 16, side, side) and captions, some of them wrong or empty."""

    def share(size: float) -> Tensor:
        return torch.rand(BATCH, generator=generator) < size

    is_sign = share(phase.signs)
    own, other = (
        torch.where(
            is_sign,
            SCENES + torch.randint(SIGNS, (BATCH,), generator=generator),
            torch.randint(SCENES, (BATCH,), generator=generator),
        )
        for _ in range(2)
    )
    x0 = data.latents[own, torch.randint(PICTURES_EACH, (BATCH,), generator=generator)].float()
    wrong = torch.where(is_sign, share(phase.wrong_signs), share(phase.wrong_scenes))
    captions = torch.where(wrong, other, own)
    captions[share(DROPPED_CAPTIONS)] = SCENES + SIGNS
    return x0, data.text.rows(captions)


def train_base(folder: Path, seed: int, data: Data) -> SD3Transformer2DModel:
    """Train, or go on, with a checkpoint in `folder`.

    Returns the mean of the moving averages before and after the last phase: the first is right too often to leave a
    reward much to do, the second too seldom.
    """
    torch.manual_seed(seed)
    model = build()
    average = copy.deepcopy(model).requires_grad_(False)
    before_last = copy.deepcopy(average)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    network = compiled(model)

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        phase, number = phase_at(index)
        if number == 0:
            _move(before_last, average, 1)
        for group in optimizer.param_groups:
            group["lr"] = phase.rate(number)
        loss = _loss(network, *_batch(data, phase, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _move(average, model, 1 - min(EMA, index / (index + 10)))
        return {"loss": float(loss.detach())}

    state = {"model": model, "average": average, "before_last": before_last, "optimizer": optimizer}
    train(folder / "base.ckpt", sum(phase.steps for phase in PHASES), seed, state, step)
    _move(average, before_last, 0.5)
    return average.eval()


def _loss(network: torch.nn.Module, x0: Tensor, text: Text, generator: torch.Generator) -> Tensor:
    t = torch.randn(BATCH, generator=generator).sigmoid()
    sigma = SHIFT * t / (1 + (SHIFT - 1) * t)
    noise = torch.randn(x0.shape, generator=generator)
    noisy = torch.lerp(x0, noise, sigma[:, None, None, None])
    return (velocity(network, noisy, sigma, text) - (noise - x0)).square().mean()


@torch.no_grad()
def _move(model: torch.nn.Module, to: torch.nn.Module, share: float) -> None:
    """Each weight goes this share of its way to that of another model."""
    for kept, new in zip(model.parameters(), to.parameters(), strict=True):
        kept.lerp_(new, share)
