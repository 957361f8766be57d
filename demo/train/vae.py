"""The demo's VAE: the layout of TAESD with 16 latent channels, a third as wide, trained on crops of scenes.

The latents are made to look like noise of size 1 (mean and size of each channel), as the flow expects, and the decoder
sees them with a little noise added, so that small errors of the flow stay small in the picture.

The decoder alone then learns to draw signs too. The encoder stays, and with it the latents that a base model knows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from demo.letters import draw_sign, random_sign
from demo.scenes import SIDE, draw, random_prompt
from demo.tiny_encoders import LATENT_CHANNELS, vae_state_dict
from demo.train.loop import cosine, train
from demo.train.precision import half_where_fast

WIDTH = 32
STEPS, BATCH, CROP, LEARNING_RATE = 3500, 16, 64, 1.5e-3
SCENES = 4096
DECODER_STEPS, DECODER_LEARNING_RATE = 2000, 6e-4
"""Of the decoder alone, on as many signs as scenes."""
LATENT_NOISE = 0.1


def build() -> AutoencoderTiny:
    """A network that starts as a blur of the picture in all its colours; from random weights it finds grey first and
    colours late."""
    width = (WIDTH,) * 4
    model = AutoencoderTiny(
        encoder_block_out_channels=width, decoder_block_out_channels=width, latent_channels=LATENT_CHANNELS
    )
    blur = vae_state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".conv." not in name:
                start = blur[host_name(name)].float()
                parameter.mul_(0.3).add_(start[tuple(slice(size) for size in parameter.shape)])
            elif ".conv.4." in name:
                parameter.zero_()
    return model.to(memory_format=torch.channels_last)


def host_name(name: str) -> str:
    """A parameter's name in the host's TAESD, which counts the decoder's clamp as its first layer."""
    part, _, layer, rest = name.split(".", 3)
    return f"taesd_{part}.{int(layer) + (part == 'decoder')}.{rest}"


def pictures(seed: int, count: int, *, signs: bool = False) -> Tensor:
    """Scenes of training prompts, or signs, (count, 3, SIDE, SIDE) uint8."""
    rng = np.random.default_rng(seed)
    found = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for index in range(count):
        picture = draw_sign(random_sign(rng, held_out=False), rng) if signs else _scene(rng)
        found[index] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return found


def _scene(rng: np.random.Generator) -> Image.Image:
    return draw(random_prompt(rng, held_out=False), rng)


def train_vae(folder: Path, seed: int) -> AutoencoderTiny:
    """Train, or go on, with checkpoints in `folder`: the whole on scenes, then the decoder on scenes and signs."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    scenes = cache(lambda: pictures(seed, SCENES))  # not drawn when there is nothing left to train

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        return _step(model, optimizer, LEARNING_RATE * cosine(index, STEPS), _crops(scenes(), generator), generator)

    train(folder / "vae.ckpt", STEPS, seed, {"model": model, "optimizer": optimizer}, step)
    return train_decoder(model, folder, seed)


def train_decoder(model: AutoencoderTiny, folder: Path, seed: int) -> AutoencoderTiny:
    """Train the decoder on scenes and signs, or go on with the checkpoint in `folder`; the encoder stays as it is."""
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=DECODER_LEARNING_RATE, weight_decay=0.0)
    both = cache(lambda: torch.cat([pictures(seed, SCENES), pictures(seed, SCENES, signs=True)]))

    def step(index: int, generator: torch.Generator) -> dict[str, float]:
        rate = DECODER_LEARNING_RATE * cosine(index, DECODER_STEPS)
        return _step(model, optimizer, rate, _crops(both(), generator), generator)

    train(folder / "decoder.ckpt", DECODER_STEPS, seed, {"model": model, "optimizer": optimizer}, step)
    return model.eval()


def _step(
    model: AutoencoderTiny, optimizer: torch.optim.Optimizer, rate: float, batch: Tensor, generator: torch.Generator
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    batch = batch.to(memory_format=torch.channels_last)
    with half_where_fast():
        latents = model.encoder(batch)
        noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        decoded = model.decoder(latents + noise)
    latents, decoded = latents.float(), decoded.float()
    # AutoencoderTiny takes and gives −1…1.
    error, edges = decoded - batch, _gradients(decoded - batch)
    # The squares see the colour of small objects, which absolute values alone give up for a grey median.
    loss = 4 * error.square().mean() + error.abs().mean() + edges.abs().mean() + 0.1 * _not_normal(latents)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(
        [parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0
    )
    optimizer.step()
    return {"loss": float(loss.detach()), "l1": float(error.detach().abs().mean())}


def _crops(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """(BATCH, 3, CROP, CROP) in −1…1."""
    which = torch.randint(len(scenes), (BATCH,), generator=generator)
    corners = torch.randint(SIDE - CROP + 1, (BATCH, 2), generator=generator)
    crops = [scenes[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(which, corners.tolist(), strict=True)]
    return torch.stack(crops).float() / 127.5 - 1


def _gradients(picture: Tensor) -> Tensor:
    across, down = picture.diff(dim=3)[:, :, 1:], picture.diff(dim=2)[..., 1:]
    return torch.cat([across, down])


def _not_normal(latents: Tensor) -> Tensor:
    """How far the channels are from mean 0 and size 1."""
    values = latents.transpose(0, 1).flatten(1)
    return values.mean(dim=1).square().mean() + (values.std(dim=1) - 1).square().mean()
