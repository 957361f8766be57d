"""The demo's base model: an MMDiT-X of three blocks, trained by flow matching on drawn scenes.

Rectified flow as in SD3 (arXiv 2403.03206): x_t = (1 − σ) x0 + σ ε, the network predicts ε − x0, and σ is
logit-normal, then shifted by 3 as the host's sampler does. One caption in ten is empty, for CFG.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from torch import Tensor
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo.scenes import Prompt, draw, random_prompt
from demo.tiny_encoders import CLIP_WIDTH, LATENT_CHANNELS
from demo.tiny_model import TinySD3
from demo.train.loop import cosine, train
from demo.train.precision import half_where_fast
from demo.train.text import Text, encoded
from files.replacing import replacing

CONFIG = TinySD3(depth=3, dual_attention_blocks=1, pos_embed_max_size=16)
CAPTIONS, SCENES_EACH = 8192, 3
BATCH = 32
STEPS, LEARNING_RATE, WARM_UP = 8000, 1e-3, 300
COSINE_STEPS, COOL_DOWN = 13000, 1500
"""The learning rate follows a cosine of that length, and falls to 0 over the last COOL_DOWN of STEPS."""
LAST_STEPS, LAST_LEARNING_RATE = 2000, 4e-4
WRONG_CAPTIONS = 1 / 6
"""Share of scenes that have the caption of another in the LAST_STEPS, as in data from the web. Now and then the model
then draws what was not asked for, and a reward has something to put right."""
DROPPED_CAPTIONS = 0.1
SHIFT = 3.0
EMA = 0.999
LATENT_SIDE = 16


@dataclass(frozen=True)
class Data:
    """Latents (captions, SCENES_EACH, 16, side, side) bfloat16, and the captions; the last one is empty."""

    latents: Tensor
    text: Text


def build(config: TinySD3 = CONFIG) -> SD3Transformer2DModel:
    """The network without the dimensions of the text that CLIP-L leaves empty; blocks start as the identity."""
    model = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        num_layers=config.depth,
        num_attention_heads=config.depth,
        joint_attention_dim=CLIP_WIDTH,
        caption_projection_dim=config.hidden,
        pooled_projection_dim=CLIP_WIDTH,
        pos_embed_max_size=config.pos_embed_max_size,
        dual_attention_layers=tuple(range(config.dual_attention_blocks)),
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
    """Scenes drawn for random captions, encoded; kept in `folder`."""
    rng = np.random.default_rng(seed)
    prompts = [random_prompt(rng, held_out=False) for _ in range(CAPTIONS)]
    text = encoded([prompt.text for prompt in prompts] + [""], folder, host)
    path = folder / f"latents_{seed}.pt"
    if not path.exists():
        scenes = _encoded_scenes(vae, prompts, rng)
        with replacing(path) as temporary:
            torch.save(scenes, temporary)
    return Data(torch.load(path, weights_only=True), text)


@torch.inference_mode()
def _encoded_scenes(vae: AutoencoderTiny, prompts: list[Prompt], rng: np.random.Generator) -> Tensor:
    found = torch.empty(len(prompts), SCENES_EACH, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE, dtype=torch.bfloat16)
    for index, prompt in enumerate(prompts):
        scenes = np.stack([np.array(draw(prompt, rng)) for _ in range(SCENES_EACH)])
        batch = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 127.5 - 1
        with half_where_fast():
            found[index] = vae.encoder(batch.to(memory_format=torch.channels_last))
        if index % 1000 == 999:
            print(f"scenes of {index + 1}/{len(prompts)} captions", flush=True)
    return found


def learning_rate(index: int) -> float:
    """Of a step."""
    if index >= STEPS:
        return LAST_LEARNING_RATE * cosine(index - STEPS, LAST_STEPS)
    return LEARNING_RATE * cosine(index, COSINE_STEPS, WARM_UP) * min(1.0, (STEPS - index) / COOL_DOWN)


def train_base(folder: Path, seed: int, data: Data) -> SD3Transformer2DModel:
    """Train, or go on, with a checkpoint in `folder`; returns the moving average of the weights."""
    torch.manual_seed(seed)
    model = build()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    network = compiled(model)

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(index)
        captions = torch.randint(CAPTIONS, (BATCH,), generator=generator)
        x0 = data.latents[captions, torch.randint(SCENES_EACH, (BATCH,), generator=generator)].float()
        if index >= STEPS:
            wrong = torch.rand(BATCH, generator=generator) < WRONG_CAPTIONS
            captions = torch.where(wrong, captions.roll(1), captions)
        captions[torch.rand(BATCH, generator=generator) < DROPPED_CAPTIONS] = CAPTIONS
        t = torch.randn(BATCH, generator=generator).sigmoid()
        sigma = SHIFT * t / (1 + (SHIFT - 1) * t)
        noise = torch.randn(x0.shape, generator=generator)
        noisy = torch.lerp(x0, noise, sigma[:, None, None, None])
        loss = (velocity(network, noisy, sigma, data.text.rows(captions)) - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - min(EMA, index / (index + 10)))
        return {"loss": float(loss.detach())}

    train(
        folder / "base.ckpt",
        STEPS + LAST_STEPS,
        seed,
        {"model": model, "average": average, "optimizer": optimizer},
        step,
    )
    return average.eval()
