"""What a LoRA is trained for: a model, its prompts, and how finished latents become pictures and scores."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import torch

from ..rewards.combined import CombinedReward
from ..rewards.protocol import networks_of
from ..rlg_sampler.guidance.guided_model import COPIES, EASY_CACHE, POSE_CACHE, Guidance, kv_caches
from ..rlg_sampler.ksampler_inputs import latent_shape
from ..rlg_sampler.messages import model_name
from ..rlg_sampler.stochastic.step import check_noise_process
from .policy.blocks import checkpointed_decoder
from .policy.gradients import frozen, streamed
from .policy.prompts import Prompts
from .weights_digest import networks_digest, weights_digest

if TYPE_CHECKING:
    from comfy.latent_formats import LatentFormat
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

    from ..rewards.protocol import Reward

_CACHES = {EASY_CACHE: "EasyCache or LazyCache", POSE_CACHE: "WanAnimate2Cache"}
"""Of the host's nodes, by the option that they set: a gradient would have to pass through an earlier step."""
_WITH_GRADIENT, _WITH_GRADIENT_OF_VIDEOS = 2, 4
"""A decoder whose blocks keep their inputs takes so many times the memory of one that keeps nothing, and one that keeps
all so many; see `blocks.checkpointed_decoder`."""


@dataclass(frozen=True)
class Task:
    """What is trained, on what, for what.

    Attributes:
        model: the MODEL; it is left as it is.
        vae: its VAE.
        prompts: asked for, evenly.
        reward: higher is better.
        width, height: of the pictures, in pixels.
        images: IMAGE (count, height, width, 3) of any size, the first for the first prompt and so on, for methods that
            learn from real pictures.
    """

    model: ModelPatcher
    vae: VAE
    prompts: Prompts
    reward: Reward
    width: int = 512
    height: int = 512
    images: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not make a task."""
        latent_shape(self.model, self.vae, self.width, self.height)
        if self.images is not None and len(self.images) != len(self.prompts.texts):
            raise ValueError(
                f"images: there are {len(self.images)} for {len(self.prompts.texts)} prompts; give each image its own."
            )
        _check_patches(self.model)
        check_noise_process(self.model.get_model_object("model_sampling"))
        dimensions = self.model.get_model_object("latent_format").latent_dimensions
        if dimensions not in (2, 3):
            raise ValueError(f"model: {model_name(self.model)} does not make pictures; load an image model.")

    @property
    def digest(self) -> dict[str, str]:
        """Hashes of the prompts, the models, the reward's networks and the images, by the names of a user's inputs."""
        models = {"base": weights_digest(self.model), "vae": weights_digest(self.vae.patcher)}
        hashes = {**self.prompts.digest, **models}
        if networks := networks_of(self.reward):
            hashes["reward_weights"] = networks_digest(networks)
        if self.images is not None:
            pixels = self.images.detach().float().cpu().contiguous().numpy()
            hashes["images"] = hashlib.sha256(pixels).hexdigest()
        return hashes

    @property
    def latent_shape(self) -> torch.Size:
        """Of one picture's latents; see `ksampler_inputs.latent_shape`."""
        return latent_shape(self.model, self.vae, self.width, self.height)

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, IMAGE (rows, height, width, 3), of latents as the model sees them."""
        images = self.vae.decode(self.model.model.process_latent_out(latents))
        return images.reshape(-1, *images.shape[-3:])

    def encoded(self, number: int) -> torch.Tensor:
        """(1, channels, ...) latents of an image, as the model sees them; its middle, at the size of the pictures."""
        pixels = self.images[number : number + 1, ..., :3].clone().movedim(-1, 1)
        fitted = comfy.utils.common_upscale(pixels, self.width, self.height, "bicubic", "center").clamp(0.0, 1.0)
        latents = self.vae.encode(fitted.movedim(1, -1))
        return self.model.model.process_latent_in(latents).reshape(1, *self.latent_shape)

    def check_scores(self, rows: int) -> None:
        """Raises ValueError: the reward does not score so few pictures; asked with black ones, before any is drawn."""
        self.scores(torch.zeros(rows, self.height, self.width, 3), [0] * rows)

    def check_gradient(self) -> None:
        """Raises ValueError: the reward has no gradient, or none for a single picture."""
        with torch.no_grad():
            self.reward.gradient_score(torch.zeros(1, self.height, self.width, 3), [self.prompts.texts[0]])

    def scored_with_gradient(
        self, latents: torch.Tensor, asked: Sequence[tuple[str, float]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of latents under some prompts, and the gradient of their weighted sum with respect to the latents.

        Args:
            latents: as the model sees them, (rows, channels, ...), on the CPU.
            asked: prompts, each with its weight.

        Returns:
            (rows, prompts) float32, and a gradient like `latents`; both on the CPU.

        Raises:
            ValueError: a score is no number.
        """
        # One picture at a time, as memory asks for, and VAE and reward in turns: one may have to go for the other.
        rows = latents.split(1)
        self._load_vae(rows[0], 1)
        pictures = [self._pictures(row).cpu() for row in rows]
        scores, of_pictures = zip(*(self._of_picture(picture, asked) for picture in pictures), strict=True)
        has_frames = latents.ndim > 4
        self._load_vae(rows[0], _WITH_GRADIENT_OF_VIDEOS if has_frames else _WITH_GRADIENT)  # now with a gradient
        vae = self.vae.first_stage_model
        with torch.enable_grad(), frozen(vae), streamed(self.vae.patcher), checkpointed_decoder(vae):
            gradients = [self._of_latents(*pair) for pair in zip(rows, of_pictures, strict=True)]
        return torch.stack(scores), torch.cat(gradients)

    def _of_picture(
        self, picture: torch.Tensor, asked: Sequence[tuple[str, float]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of an IMAGE, (prompts,), and the gradient of their weighted sum with respect to it; on the CPU."""
        texts, weights = [text for text, _ in asked], [weight for _, weight in asked]
        with torch.enable_grad():
            picture = picture.detach().clone().requires_grad_()
            scores = self.reward.gradient_score(picture.expand(len(texts), -1, -1, -1), texts)
            (gradient,) = torch.autograd.grad((scores * scores.new_tensor(weights)).sum(), picture)
        scores = scores.detach().float().cpu()
        self._check(scores, texts)
        return scores, gradient

    def _of_latents(self, latents: torch.Tensor, of_picture: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to latents, by that of their picture."""
        latents = latents.detach().clone().requires_grad_()
        pictures = self._pictures(latents)
        return torch.autograd.grad(pictures, latents, of_picture.to(pictures.device))[0]

    def _load_vae(self, latents: torch.Tensor, times: int) -> None:
        """On its device, with so many times the memory that decoding takes."""
        memory = times * self.vae.memory_used_decode(latents.shape, self.vae.vae_dtype)
        comfy.model_management.load_models_gpu([self.vae.patcher], memory_required=memory)

    def _pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """As `decoded`, by the VAE as it is loaded."""
        vae = self.vae
        stored = _with_constants(self.model.model.latent_format).process_out(latents).to(vae.device, vae.vae_dtype)
        images = vae.process_output(vae.first_stage_model.decode(stored).float()).movedim(1, -1)
        return images.reshape(-1, *images.shape[-3:])

    @property
    def sum(self) -> CombinedReward:
        """The reward as a sum of rewards, which may be of one."""
        reward = self.reward
        return reward if isinstance(reward, CombinedReward) else CombinedReward([(reward, 1.0)], "none")

    def scores(self, images: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
        """(rows, rewards) scores of pictures of these prompts, for each part of `sum`; on the CPU.

        Raises:
            ValueError: a score is no number.
        """
        texts = [self.prompts.texts[number] for number in prompts]
        scores = self.sum.raw(images, texts)
        self._check(self.sum.weighed(scores), texts)
        return scores.cpu()

    def _check(self, scores: torch.Tensor, texts: Sequence[str]) -> None:
        if not torch.isfinite(scores).all():
            bad = int((~torch.isfinite(scores)).nonzero()[0])
            raise ValueError(
                f"reward: {self.reward.name} gave {scores[bad].item()} for a picture of "
                f"'{texts[bad]}', which nothing can be learned from; use another reward, or "
                "lower learning_rate if the pictures fell apart."
            )


def _with_constants(latents: LatentFormat) -> LatentFormat:
    """The same with tensors that a backward pass can keep: a loader has made them in inference mode."""
    own = copy.copy(latents)
    vars(own).update({name: value.clone() for name, value in vars(own).items() if isinstance(value, torch.Tensor)})
    return own


def _check_patches(model: ModelPatcher) -> None:
    """Raises ValueError: the MODEL carries what no gradient passes through, or what training would leave out."""
    if Guidance.on(model) is not None:
        raise ValueError("model: it is a guided MODEL; connect the base model, as it is before RLG Model.")
    for option, name in _CACHES.items():
        if option in model.model_options.get("transformer_options", {}):
            raise ValueError(f"model: {name} keeps what it has computed from step to step; take it out.")
    if kv_caches(model.model_options.get("transformer_options", {})):
        raise ValueError("model: Flux KV Cache keeps what it has computed from step to step; take it out.")
    if model.get_additional_models_with_key(COPIES):
        raise ValueError("model: MultiGPU CFG Split computes without gradients; take it out, and train on one GPU.")
    if "sampler_calc_cond_batch_function" in model.model_options:
        raise ValueError(
            "model: a patch on it (such as SkipLayerGuidanceDiTSimple) computes both sides of CFG in a way of its own, "
            "which training would leave out; take it out."
        )
