"""What a LoRA is trained for: a model, its prompts, and how finished latents become pictures and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..rlg_sampler.messages import model_name
from .prompts import Prompts

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from ..rewards.protocol import Reward


@dataclass(frozen=True)
class Task:
    """What is trained, on what, for what.

    Attributes:
        model: the MODEL; it is left as it is.
        vae: its VAE.
        prompts: asked for, evenly.
        reward: higher is better.
        width, height: of the pictures, in pixels.
    """

    model: ModelPatcher
    vae: VAE
    prompts: Prompts
    reward: Reward
    width: int = 512
    height: int = 512

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not make a task."""
        pixels = self.vae.spacial_compression_encode()
        for name, length in (("width", self.width), ("height", self.height)):
            if length <= 0 or length % pixels:
                raise ValueError(f"{name}: {length} is no multiple of {pixels}, as this VAE needs; change it.")
        dimensions = self.model.get_model_object("latent_format").latent_dimensions
        if dimensions not in (2, 3):
            raise ValueError(f"model: {model_name(self.model)} does not make pictures; load an image model.")

    @property
    def latent_shape(self) -> torch.Size:
        """Of one picture's latents: (channels, height, width), with a frame between for models of video."""
        latents = self.model.get_model_object("latent_format")
        pixels = self.vae.spacial_compression_encode()
        frames = (1,) if latents.latent_dimensions == 3 else ()
        return torch.Size((latents.latent_channels, *frames, self.height // pixels, self.width // pixels))

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, IMAGE (rows, height, width, 3), of latents as the model sees them."""
        images = self.vae.decode(self.model.model.process_latent_out(latents))
        return images.reshape(-1, *images.shape[-3:])

    def scores(self, images: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        """(rows,) float32 rewards of pictures of these prompts.

        Raises:
            ValueError: a score is no number.
        """
        scores = self.reward.score(images, [self.prompts.texts[number] for number in prompts])
        if not torch.isfinite(scores).all():
            bad = int((~torch.isfinite(scores)).nonzero()[0])
            raise ValueError(
                f"reward: {self.reward.name} gave {scores[bad].item()} for a picture of "
                f"'{self.prompts.texts[prompts[bad]]}', which nothing can be learned from; use another reward, or "
                "lower learning_rate if the pictures fell apart."
            )
        return scores.float()
