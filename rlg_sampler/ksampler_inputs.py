"""What the stock KSampler asks for besides its MODEL: one value for every node that samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


@dataclass(frozen=True)
class KSamplerInputs:
    """The inputs in the names and the order of the host's KSampler, which `vars` of this value calls.

    Attributes:
        positive, negative: CONDITIONING.
        latent_image: LATENT with `samples` of shape (batch, channels, ...).
    """

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    positive: list
    negative: list
    latent_image: dict[str, Any]
    denoise: float

    @property
    def pictures(self) -> int:
        """How many latents there are.

        Raises:
            ValueError: they are of several kinds at once, which cannot be put beside others.
        """
        samples = self.latent_image["samples"]
        if samples.is_nested:
            raise ValueError("latent_image: picture and sound together cannot be compared; use RLG KSampler for these.")
        return len(samples)

    def start(self, model: ModelPatcher) -> torch.Tensor:
        """The latents that a run starts from; empty ones in the shape that `model` needs.

        Raises:
            ValueError: the latent is of another kind of model.
        """
        # Newer hosts note with an empty latent for which model it was made.
        made_for = {name: value for name, value in self.latent_image.items() if name.startswith("downscale_ratio_")}
        start = comfy.sample.fix_empty_latent_channels(model, self.latent_image["samples"], **made_for)
        check_latent(model, start)
        return start

    def noise(self, start: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """The host's noise for latents like `start`, from `seed` or from the task's own."""
        return comfy.sample.prepare_noise(
            start, self.seed if seed is None else seed, self.latent_image.get("batch_index")
        )

    def sigmas(self, model: ModelPatcher) -> torch.Tensor:
        """σ_0 … σ_n of the n steps that run; empty where denoise is 0."""
        names = self.sampler_name, self.scheduler
        return comfy.samplers.KSampler(model, self.steps, model.load_device, *names, self.denoise).sigmas

    def sample(
        self,
        model: ModelPatcher,
        sigmas: torch.Tensor,
        noise: torch.Tensor,
        start: torch.Tensor,
        callback: Callable,
        seed: int | None = None,
        sampler: comfy.samplers.Sampler | None = None,
    ) -> torch.Tensor:
        """Run the stock sampler over `sigmas`.

        Args:
            noise, start: shape (batch, channels, ...).
            callback: of the host, (step, x0, x, steps).
            seed: of a stochastic sampler's noise, in place of the task's own.
            sampler: in place of the one called `sampler_name`.
        """
        return comfy.sample.sample_custom(
            model, noise, self.cfg, sampler or comfy.samplers.sampler_object(self.sampler_name), sigmas, self.positive,
            self.negative, start, noise_mask=self.latent_image.get("noise_mask"), callback=callback, disable_pbar=True,
            seed=self.seed if seed is None else seed,
        )  # fmt: skip

    def latent_of(self, runs: Sequence[torch.Tensor]) -> dict[str, Any]:
        """LATENT of what several runs gave, (batch, channels, ...) each; a run's pictures stay next to each other."""
        latent = {name: value for name, value in self.latent_image.items() if not name.startswith("downscale_ratio_")}
        latent["samples"] = torch.cat(list(runs))
        if "batch_index" in latent:
            latent["batch_index"] = list(latent["batch_index"]) * len(runs)
        mask = latent.get("noise_mask")
        of_frames = latent["samples"].ndim > 4 and mask is not None and mask.ndim < 5  # as the host reads them
        if mask is not None and len(mask) > 1 and not of_frames:
            latent["noise_mask"] = torch.cat([comfy.utils.repeat_to_batch_size(mask, len(runs[0]))] * len(runs))
        return latent


@dataclass
class Progress:
    """Of runs one after another, as that of one.

    Attributes:
        callback: the host's, for all of them.
        total: number of their steps.
        done: steps of the runs that have begun.
        last_x0: what the last step of a run has predicted, as the model sees it.
    """

    callback: Callable
    total: int
    done: int = 0
    last_x0: torch.Tensor | None = None

    def of_run(self, steps: int) -> Callable:
        """The host's callback for the next run."""
        before = self.done
        self.done += steps

        def report(step: int, x0: torch.Tensor, x: torch.Tensor, _: int) -> None:
            self.last_x0 = x0
            # An adaptive sampler takes as many steps as it needs.
            self.callback(before + min(step, steps - 1), x0, x, self.total)

        return report


def latent_shape(model: ModelPatcher, vae: VAE, width: int, height: int) -> torch.Size:
    """Of one picture's latents: (channels, height, width), with a frame between for models of video.

    Args:
        model: the MODEL that samples them.
        vae: that makes them a picture.
        width, height: of the picture, in pixels.

    Raises:
        ValueError: the VAE makes no picture of that size.
    """
    pixels = vae.spacial_compression_encode()
    for name, length in (("width", width), ("height", height)):
        if length <= 0 or length % pixels:
            raise ValueError(f"{name}: {length} is no multiple of {pixels}, as this VAE needs; change it.")
    latents = model.get_model_object("latent_format")
    frames = (1,) if latents.latent_dimensions == 3 else ()
    return torch.Size((latents.latent_channels, *frames, height // pixels, width // pixels))


def check_latent(model: ModelPatcher, latent: torch.Tensor) -> None:
    """Refuse a latent of another kind of model.

    Args:
        model: the MODEL that is to sample.
        latent: shape (batch, channels, ...), after the host adapted empty ones.

    Raises:
        ValueError: the channel counts differ.
    """
    if latent.is_nested:  # of picture and sound, which have channels of their own
        return
    channels = model.get_model_object("latent_format").latent_channels
    if latent.ndim >= 4 and latent.shape[1] != channels:
        raise ValueError(
            f"latent_image: it has {latent.shape[1]} channels and this model needs {channels}; encode the picture with "
            "this model's VAE, or use its empty latent node."
        )
